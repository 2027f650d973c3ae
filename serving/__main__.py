"""Serve a model over HTTP.

::

    python -m serving
    curl -H 'Content-Type: application/json' http://127.0.0.1:8000/v1/completions \\
      -d '{"prompt": "A tile of keys", "max_tokens": 200, "temperature": 0.7, "stream": true}'
"""

import argparse
from pathlib import Path

import kernels
from serving import tokenizer
from serving.background import Background
from serving.engine import Engine
from serving.model import WEIGHTS, load
from serving.server import Server, make_app


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serving", description="Serve a model over HTTP."
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the model's folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--num-blocks", type=int, default=2048, help="blocks of the KV cache")
    parser.add_argument("--cpu-blocks", type=int, default=512, help="blocks to swap to")
    parser.add_argument("--block-size", type=int, default=16, help="tokens a block")
    parser.add_argument("--token-budget", type=int, default=512, help="most tokens in a step")
    parser.add_argument("--max-sequences", type=int, default=64, help="most sequences in a step")
    parser.add_argument("--max-requests", type=int, default=256, help="then others are refused")
    parser.add_argument(
        "--grace-seconds", type=float, default=10.0, help="for requests when the server ends"
    )
    chosen = parser.parse_args()
    try:
        model = load(chosen.weights)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"no model to serve: {error}") from error
    if model.config.vocabulary != tokenizer.VOCABULARY:
        raise SystemExit(
            f"the model has {model.config.vocabulary} tokens; the server's are "
            f"{tokenizer.VOCABULARY}, the bytes and the end of a text"
        )
    where = (
        "on the CPU, through Triton's interpreter: slow" if kernels.INTERPRETED else "on the GPU"
    )
    print(f"Loading {chosen.weights} {where} …", flush=True)
    engine = Engine(
        model,
        num_blocks=chosen.num_blocks,
        cpu_blocks=chosen.cpu_blocks,
        block_size=chosen.block_size,
        token_budget=chosen.token_budget,
        max_sequences=chosen.max_sequences,
        end_token=tokenizer.END,
    )
    background = Background(engine, most_requests=chosen.max_requests)
    server = Server(
        make_app(background, model=chosen.weights.resolve().name),
        background,
        host=chosen.host,
        port=chosen.port,
        grace_seconds=chosen.grace_seconds,
    )
    print(f"Serving at http://{chosen.host}:{chosen.port}/v1/completions", flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        pass  # uvicorn raises it again once everything has ended


if __name__ == "__main__":
    main()
