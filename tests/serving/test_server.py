"""The server: many clients at once, slow ones, ones that go away, wrong ones, and the end."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest
import torch

from serving import __main__ as command
from serving import tokenizer
from serving.background import Background, Unavailable
from serving.engine import Engine
from serving.model import save
from serving.sampler import SamplingParams
from serving.server import Limits, Server, Text, make_app
from tests.serving import torch_paged
from tests.serving.memory import check_pools
from tests.serving.tiny import CONFIG, tiny_model

BYTES = replace(CONFIG, vocabulary=tokenizer.VOCABULARY)
PATIENCE = 60  # seconds until what should happen at once counts as never


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def make_engine(model, slowness: float = 0.0) -> Engine:
    """An engine whose steps take at least so many seconds."""
    engine = Engine(
        model,
        num_blocks=64,
        cpu_blocks=16,
        block_size=4,
        max_sequences=16,
        graphs=False,
        paged=torch_paged,
    )
    compute = engine.runner.compute

    def slowly(runs):
        time.sleep(slowness)
        return compute(runs)

    engine.runner.compute = slowly
    return engine


@pytest.fixture(scope="module")
def model():
    return tiny_model(BYTES)


class Running:
    """A server in a thread, at a port that was free."""

    def __init__(self, engine: Engine, *, grace: float = 5.0, most: int = 64, limits=None) -> None:
        self.engine = engine
        self.background = Background(engine, most_requests=most)
        app = make_app(self.background, limits=limits)
        self.server = Server(app, self.background, host="127.0.0.1", port=0, grace_seconds=grace)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE)

    def post(self, **body) -> httpx.Response:
        return self.client.post("/v1/completions", json=body)

    def end(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    def ended(self) -> None:
        """The server's thread ends, and with it everything that it held."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        assert not self.background.accepting
        check_idle(self.engine)


def check_idle(engine: Engine) -> None:
    assert not engine.requests
    assert not engine.scheduler.allocator.tables
    check_pools(engine.scheduler.allocator)


@contextmanager
def running(engine: Engine, **options):
    server = Running(engine, **options)
    try:
        yield server
    finally:
        server.client.close()
        server.end()
        server.ended()


@pytest.fixture(scope="module")
def server(model):
    limits = Limits(body_bytes=5000, body_seconds=2.0, prompts=4)
    with running(make_engine(model), limits=limits) as server:
        yield server


def events(response: httpx.Response) -> list[dict]:
    """What was streamed, up to ``[DONE]``, which has to come."""
    lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def texts(chunks: list[dict]) -> dict[int, str]:
    joined: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            joined[choice["index"]] = joined.get(choice["index"], "") + choice["text"]
    return joined


def expected(model, prompt: str, **params) -> list[str]:
    """The engine's own completions, as text."""
    (found,) = make_engine(model).generate([tokenizer.encode(prompt)], SamplingParams(**params))
    return [tokenizer.decode(completion.tokens) for completion in found]


# Answers.


def test_a_completion_is_the_engines(server, model):
    answer = server.post(prompt="Tiles", max_tokens=9, seed=3, n=2, temperature=0.8).json()
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert [choice["text"] for choice in answer["choices"]] == expected(
        model, "Tiles", max_new_tokens=9, seed=3, n=2, temperature=0.8
    )
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 18, "total_tokens": 23}


@pytest.mark.parametrize("beam_search", [False, True])
def test_a_stream_says_the_same_as_the_whole(server, beam_search):
    body = {
        "prompt": ["Tiles", "KL"],
        "max_tokens": 9,
        "n": 2,
        "seed": 1,
        "beam_search": beam_search,
    }
    whole = {choice["index"]: choice["text"] for choice in server.post(**body).json()["choices"]}
    assert sorted(whole) == [0, 1, 2, 3]
    with server.client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = events(response)
    assert texts(chunks) == whole
    reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
    assert sum(reason is not None for reason in reasons) == 4


def test_a_stop_ends_the_text_and_is_not_in_it(server, model):
    (text,) = expected(model, "Tiles", max_new_tokens=12, temperature=0)
    stop = text[5:7]
    body = {"prompt": "Tiles", "max_tokens": 12, "temperature": 0, "stop": stop}
    (choice,) = server.post(**body).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == text[: text.index(stop)]
    with server.client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        assert texts(events(response)) == {0: choice["text"]}


def test_a_growing_text_shows_no_part_of_a_stop_or_of_a_character():
    text = Text([tokenizer.encode("é!")])
    shown = [text.push([byte], None) for byte in tokenizer.encode("aé?é")]
    assert shown == ["", "", "a", "", "é", "?"]
    assert text.push(tokenizer.encode("!"), "stop") == ""
    cut_off = tokenizer.encode("é")[:1]
    assert Text([]).push(cut_off, "length") == "\ufffd"


def test_each_prompt_has_a_seed_of_its_own(server, model):
    body = {"prompt": ["Tiles", "Tiles"], "max_tokens": 9, "seed": 3}
    answer = [choice["text"] for choice in server.post(**body).json()["choices"]]
    seeds = [expected(model, "Tiles", max_new_tokens=9, seed=seed)[0] for seed in (3, 4)]
    assert answer == seeds
    assert seeds[0] != seeds[1]


def test_health_and_models(server):
    assert server.client.get("/health").json()["status"] == "ok"
    assert server.client.get("/v1/models").json()["data"][0]["id"] == "tiny"


# Wrong requests.


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "prompt: Field required"),
        ({"prompt": ""}, 400, "the prompt is empty"),
        ({"prompt": []}, 400, "prompt must hold 1 to 4 prompts, got 0"),
        ({"prompt": ["a"] * 5}, 400, "prompt must hold 1 to 4 prompts, got 5"),
        ({"prompt": [257]}, 400, "a token is below 257, got 257"),
        ({"prompt": ["a", ""]}, 400, "the prompt is empty"),
        ({"prompt": {"a": 1}}, 400, "prompt"),
        ({"prompt": "a" * 60}, 400, "the prompt has 60 tokens and max_new_tokens is 16"),
        ({"prompt": "a", "temprature": 1}, 400, "temprature: Extra inputs are not permitted"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature must be a finite number"),
        ({"prompt": "a", "top_p": 0}, 400, "top_p must be above 0"),
        ({"prompt": "a", "n": 17}, 400, "parallel is 17, but a step has room for 16"),
        ({"prompt": "a", "max_tokens": 2.5}, 400, "max_tokens"),
        ({"prompt": "a", "max_tokens": 10**30}, 400, "max_new_tokens is 1000000"),
        ({"prompt": "a", "stop": ""}, 400, "stop has an empty sequence"),
        ({"prompt": "a", "seed": 2**63}, 400, "seed must be below"),
        ({"prompt": "a", "model": "gpt-4"}, 404, "there is no model 'gpt-4'; there is 'tiny'"),
        ({"prompt": "a", "max_tokens": 0, "stream": True}, 400, "max_new_tokens must be"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_request_is_told_what_is_wrong(server, body, status, message):
    response = server.post(**body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]
    assert not server.engine.requests


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[1]", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 4000],
    ids=lambda body: repr(body)[:20],
)
def test_a_malformed_body_is_refused(server, body):
    headers = {"content-type": "application/json"}
    response = server.client.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_a_body_that_is_too_large_is_refused_by_what_it_declares_and_by_what_comes(server):
    declared = server.post(prompt="a" * 6000)

    def chunks():
        for _ in range(6):
            yield b"a" * 1000

    came = server.client.post("/v1/completions", content=chunks())
    for response in (declared, came):
        assert response.status_code == 413
        assert response.json()["error"]["message"] == "the body is larger than 5000 bytes"


@pytest.mark.parametrize(("length", "status"), [(100, b" 408 "), (6000, b" 413 ")])
def test_a_body_that_does_not_arrive_is_given_up_and_one_too_large_not_awaited(
    server, length, status
):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + b"{")
        assert status in connection.recv(4096).splitlines()[0]


def test_unknown_paths_and_methods(server):
    assert server.client.get("/nothing").json()["error"]["message"] == "Not Found"
    assert server.client.get("/v1/completions").status_code == 405


# Many clients.


def test_clients_at_once_get_what_each_would_get_alone(server, model):
    bodies = [
        {"prompt": f"Block {place}", "max_tokens": 4 + place % 9, "seed": place}
        for place in range(24)
    ]

    async def ask(client, body):
        if body["seed"] % 2:
            return (await client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
        lines = []
        async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as got:
            async for line in got.aiter_lines():
                lines += [line] if line else []
        assert lines[-1] == "data: [DONE]"
        return texts([json.loads(line.removeprefix("data: ")) for line in lines[:-1]])[0]

    async def ask_all():
        url = f"http://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
            return await asyncio.gather(*(ask(client, body) for body in bodies))

    got = asyncio.run(ask_all())
    for body, text in zip(bodies, got, strict=True):
        params = {"max_new_tokens": body["max_tokens"], "seed": body["seed"]}
        assert [text] == expected(model, body["prompt"], **params)
    wait_until(lambda: not server.engine.requests)
    check_idle(server.engine)


def request_bytes(**body) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + content


def test_a_client_that_does_not_read_delays_nobody(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as slow:
        slow.sendall(request_bytes(prompt="a", max_tokens=50, stream=True))
        for _ in range(3):
            assert server.post(prompt="b", max_tokens=50).status_code == 200
        wait_until(lambda: not server.engine.requests)
        received = b""
        while part := slow.recv(100):
            received += part
    assert received.count(b"data: {") == 50
    assert b"data: [DONE]" in received


@pytest.mark.parametrize(
    ("stream", "after"),
    [(False, "its request"), (True, "its request"), (True, "its first bytes")],
)
def test_a_client_that_goes_away_takes_its_request_with_it(model, stream, after):
    engine = make_engine(model, slowness=0.2)  # the request would take 12 seconds
    with running(engine) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
            client.sendall(request_bytes(prompt="a", max_tokens=60, temperature=0, stream=stream))
            if after == "its first bytes":
                while b"data: " not in client.recv(4096):
                    pass
            else:
                wait_until(lambda: engine.requests)
        started = time.monotonic()
        wait_until(lambda: not engine.requests)
        assert time.monotonic() - started < 6
        check_idle(engine)
        assert server.post(prompt="b", max_tokens=1).status_code == 200


def test_more_requests_than_there_is_room_for_are_refused_for_now(model):
    engine = make_engine(model, slowness=0.05)
    with running(engine, most=2) as server:
        body = {"prompt": ["a", "a"], "max_tokens": 60, "temperature": 0, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()  # once it is dropped, the connection is closed
            assert next(lines)
            refused = server.post(prompt="c")
            assert refused.status_code == 429
            assert refused.headers["retry-after"]
            assert refused.json()["error"]["message"] == "the server is busy with 2 requests"
        wait_until(lambda: not engine.requests)
        assert server.post(prompt="c").status_code == 200


def test_an_error_of_the_engine_reaches_the_client_and_nobody_else(model):
    engine = make_engine(model)
    compute, broken = engine.runner.compute, tokenizer.encode("x")[0]

    def failing(runs):
        if any(run.tokens[0] == broken and run.start == 0 for run in runs):
            raise RuntimeError("out of memory")
        return compute(runs)

    engine.runner.compute = failing
    with running(engine) as server:
        response = server.post(prompt="x")
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "out of memory"
        assert server.post(prompt="y").status_code == 200
        with server.client.stream(
            "POST", "/v1/completions", json={"prompt": "x", "stream": True}
        ) as response:
            (event,) = events(response)
        assert event["error"]["message"] == "out of memory"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_dies_is_reported(model):
    engine = make_engine(model)

    def step():
        raise AssertionError("a bug")

    with running(engine) as server:
        engine.step = step
        response = server.post(prompt="x")
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "a bug"
        health = server.client.get("/health")
        assert health.status_code == 503
        assert health.json()["error"]["message"] == "the engine has failed"
        assert server.post(prompt="x").status_code == 503


# The end.


@pytest.mark.parametrize("grace", [10.0, 0.2])
def test_a_stream_at_the_servers_end_is_finished_or_told(model, grace):
    engine = make_engine(model, slowness=0.02)
    server = Running(engine, grace=grace)
    with (
        server.client,
        server.client.stream(
            "POST",
            "/v1/completions",
            json={"prompt": "a", "max_tokens": 60, "temperature": 0, "stream": True},
        ) as response,
    ):
        lines = response.iter_lines()
        assert next(lines)
        server.end()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    last = json.loads(rest[-2].removeprefix("data: "))
    if grace > 1:
        assert last["choices"][0]["finish_reason"] == "length"
    else:
        assert last["error"]["message"] == "the server is shutting down"
    server.ended()


def test_nothing_new_is_taken_at_the_end(model):
    background = Background(make_engine(model))
    background.start()
    background.drain(5.0)
    assert not background.accepting

    async def ask():
        async for _ in background.serve([[1]], [SamplingParams()]):
            pass

    with pytest.raises(Unavailable, match="the server is shutting down"):
        asyncio.run(ask())
    background.stop()
    with pytest.raises(Unavailable, match="the server is shutting down"):
        asyncio.run(ask())


def test_the_command_serves_and_ends(tmp_path):
    save(tiny_model(BYTES), tmp_path / "model", torch.float16)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = [sys.executable, "-m", "serving", "--weights", str(tmp_path / "model")]
    options = ["--port", str(port), "--num-blocks", "16", "--grace-seconds", "1"]
    with subprocess.Popen([*serving, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("Loading")
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        url = f"http://127.0.0.1:{port}"

        def healthy():
            try:
                return httpx.get(f"{url}/health").status_code == 200
            except httpx.ConnectError:
                return False

        wait_until(healthy)
        body = {"prompt": "KV", "max_tokens": 2, "temperature": 0}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE).json()
        assert answer["usage"]["completion_tokens"] >= 1
        assert answer["model"] == "model"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_the_command_says_what_is_lacking(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serving", "--weights", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"no model to serve: {tmp_path} must have a config.json"):
        command.main()
    save(tiny_model(), tmp_path, torch.float32)
    with pytest.raises(SystemExit, match="the model has 23 tokens; the server's are 257"):
        command.main()
