"""Serves the built website on this machine: python -m scripts.serve [PORT]"""

from __future__ import annotations

import argparse
import functools
import http.server
import sys
from pathlib import Path

SITE = Path(__file__).resolve().parent.parent / "_build" / "html"


def port_number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535; got {text!r}")
    return int(text)


def open_server(site: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server for `site` that only this machine can reach."""
    if not (site / "index.html").is_file():
        sys.exit(f"There is no site in {site} yet: run `make book` first.")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as problem:
        sys.exit(
            f"Port {port} cannot be used ({problem.strerror}): "
            f"try another, for example `python -m scripts.serve {port % 65535 + 1}`."
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.serve", description=__doc__)
    parser.add_argument("port", nargs="?", type=port_number, default=8000)
    server = open_server(SITE, parser.parse_args().port)
    print(f"The book is at http://127.0.0.1:{server.server_port} (Ctrl+C stops it).", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
