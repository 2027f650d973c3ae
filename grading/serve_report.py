"""Shows what ``grading export`` wrote in a browser on this machine, and nothing else."""

import http.server
import secrets
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, urlsplit

from grading.assignment import AssignmentError
from grading.course import Course

_KINDS = {
    ".html": "text/html",
    ".csv": "text/csv",
    ".json": "application/json",
    ".xml": "application/xml",
    ".md": "text/plain",
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def exported(course: Course) -> dict[str, Path]:
    """The files of the report, by the paths at which they are served.

    Raises:
        AssignmentError: nothing was exported.
    """
    folder = course.folder
    if not (folder / "report.html").is_file():
        raise AssignmentError(f"There is no report in {folder}: run grading export first.")
    names = ["report.html", "gradebook.csv", "gradebook.json", "junit.xml"]
    names += [f"feedback/{file.name}" for file in sorted((folder / "feedback").glob("*.md"))]
    files = {name: folder / name for name in names}
    files = {n: file for n, file in files.items() if file.is_file() and not file.is_symlink()}
    return {"": files["report.html"], **files}


def open_server(course: Course, port: int) -> tuple[http.server.ThreadingHTTPServer, str]:
    """A server that only this machine can reach, and the address of the report.

    Other users of the machine reach it, too, so the address holds a secret.
    """
    files, start = exported(course), f"/{secrets.token_urlsafe(16)}/"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            # A name is looked up and never made into a path, so there is no way out of the report.
            file = files.get(path.removeprefix(start)) if path.startswith(start) else None
            try:
                data = file.read_bytes() if file else None
            except OSError:
                data = None
            if data is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{_KINDS[file.suffix]}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *_) -> None:
            pass

    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as problem:
        raise AssignmentError(
            f"Port {port} cannot be used ({problem.strerror}): name another with --port."
        ) from problem
    return server, f"http://127.0.0.1:{server.server_port}{start}"


def serve(course: Course, port: int) -> None:
    """Serve the report until Ctrl+C."""
    server, address = open_server(course, port)
    with server:
        print(f"The report is at {address} (Ctrl+C stops it).", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
