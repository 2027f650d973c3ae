"""An HTTP server for the engine: ``POST /v1/completions`` as OpenAI's, also streamed; ``GET /health``.

    python -m serving

Limits keep one client from harming others: the size of a body and the time it may take to arrive, prompts
in a request and requests at a time. A client that goes away takes its request with it. On SIGTERM or SIGINT
the server takes no more requests, lets those it has go on for some seconds, and ends what is left with an
error that its clients can read.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from starlette.exceptions import HTTPException

from serving import tokenizer
from serving.background import Background, Unavailable
from serving.engine import Output
from serving.sampler import SamplingParams


@dataclass(frozen=True)
class Limits:
    """What a client may ask for."""

    body_bytes: int = 1 << 20
    body_seconds: float = 10.0
    prompts: int = 32


class CompletionRequest(BaseModel):
    """The body of a request; an option that is not here is refused."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | list[StrictInt] | list[str] | list[list[StrictInt]]
    model: str | None = None
    max_tokens: StrictInt = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: StrictInt | None = None
    n: StrictInt = 1
    stop: str | list[str] = Field(default_factory=list)
    seed: StrictInt | None = None
    beam_search: bool = False
    length_penalty: float = 1.0
    stream: bool = False

    def prompts(self) -> list[list[int]]:
        """Each prompt as tokens."""
        given = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        return [tokenizer.encode(one) if isinstance(one, str) else one for one in given]

    def stops(self) -> list[list[int]]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        return [tokenizer.encode(stop) for stop in stops]

    def params(self, count: int) -> list[SamplingParams]:
        """One for each prompt, with a seed of its own."""
        seed = secrets.randbits(62) if self.seed is None else self.seed
        return [
            SamplingParams(
                max_new_tokens=self.max_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                n=self.n,
                beam_search=self.beam_search,
                length_penalty=self.length_penalty,
                seed=seed + place,
                stop=self.stops(),
            )
            for place in range(count)
        ]


class Text:
    """One choice's text as it grows, without the stop sequence that ends it."""

    def __init__(self, stops: list[list[int]]) -> None:
        self.stops = stops
        self.held_back = max((len(stop) - 1 for stop in stops), default=0)
        self.tokens: list[int] = []  # not yet shown: they may begin a stop sequence
        self.decoder = tokenizer.Decoder()

    def push(self, tokens: list[int], finish_reason: str | None) -> str:
        """What can be shown after these tokens."""
        self.tokens += tokens
        if finish_reason is None:
            end = max(0, len(self.tokens) - self.held_back)
            shown, self.tokens = self.tokens[:end], self.tokens[end:]
            return self.decoder.push(shown)
        for stop in self.stops:
            if self.tokens[-len(stop) :] == stop:
                return self.decoder.push(self.tokens[: -len(stop)], final=True)
        return self.decoder.push(self.tokens, final=True)


class Answer:
    """The news of a request as OpenAI's objects."""

    def __init__(self, body: CompletionRequest, model: str) -> None:
        self.body, self.texts = body, {}
        self.head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self.generated = 0

    def choice(self, output: Output) -> dict:
        """What an output adds to one of the choices."""
        index = output.request * self.body.n + output.index
        text = self.texts.setdefault(index, Text(self.body.stops()))
        self.generated += len(output.tokens)
        return {
            "index": index,
            "text": text.push(output.tokens, output.finish_reason),
            "logprobs": None,
            "finish_reason": output.finish_reason,
        }

    def whole(self, choices: list[dict]) -> dict:
        """The answer at once, from all that :meth:`choice` gave."""
        merged: dict[int, dict] = {}
        for choice in choices:
            before = merged.get(choice["index"], {"text": ""})["text"]
            merged[choice["index"]] = choice | {"text": before + choice["text"]}
        prompted = sum(len(prompt) for prompt in self.body.prompts())
        usage = {
            "prompt_tokens": prompted,
            "completion_tokens": self.generated,
            "total_tokens": prompted + self.generated,
        }
        return self.head | {"choices": [merged[i] for i in sorted(merged)], "usage": usage}


def make_app(
    background: Background, *, model: str = "tiny", limits: Limits | None = None
) -> FastAPI:
    """The application around an engine, whose thread it starts and stops."""
    limits = limits or Limits()

    @asynccontextmanager
    async def lifespan(_):
        background.start()
        yield
        await asyncio.to_thread(background.stop)

    app = FastAPI(
        title="The attention book's engine", lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(BodyLimits, limits=limits)

    @app.get("/health")
    def health():
        if background.accepting:
            return {"status": "ok", "requests": len(background.engine.requests)}
        return _error(503, "the engine has failed" if background.error else "shutting down")

    @app.get("/v1/models")
    def models():
        return {"object": "list", "data": [{"id": model, "object": "model"}]}

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request):
        if body.model not in (None, model):
            return _error(404, f"there is no model {body.model!r}; there is {model!r}", "model")
        prompts = body.prompts()
        if not 1 <= len(prompts) <= limits.prompts:
            message = f"prompt must hold 1 to {limits.prompts} prompts, got {len(prompts)}"
            return _error(400, message, "prompt")
        answer = Answer(body, model)
        try:
            news = background.serve(prompts, body.params(len(prompts)))
            # Streamed or not, the first news come before the status: a refusal is an error.
            work = anext(news) if body.stream else _collect(news, answer)
            done = await _unless_disconnected(request, work)
        except (TypeError, ValueError) as error:
            return _error(400, str(error))
        except Unavailable as error:
            return _error(429 if background.accepting else 503, str(error))
        if done is None:
            return _error(499, "the client has closed the connection")
        if body.stream:
            return StreamingResponse(_events(done, news, answer), media_type="text/event-stream")
        return done

    @app.exception_handler(RequestValidationError)
    async def invalid(_, error: RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return _error(400, f"{place}: {first['msg']}" if place else first["msg"], place or None)

    @app.exception_handler(HTTPException)
    async def refused(_, error: HTTPException):
        return _error(error.status_code, str(error.detail))

    return app


async def _collect(news: AsyncIterator[Output], answer: Answer):
    """All news of a request as one response."""
    choices = []
    async with aclosing(news):
        async for output in news:
            if output.error is not None:
                return _failure(output.error)
            choices.append(answer.choice(output))
    return answer.whole(choices)


async def _events(first: Output, news: AsyncIterator[Output], answer: Answer) -> AsyncIterator[str]:
    """News of a request as server-sent events, the last of them ``[DONE]``."""

    async def all_news():
        yield first
        async for output in news:
            yield output

    async with aclosing(news):
        async for output in all_news():
            if output.error is not None:
                yield _event(json.loads(_failure(output.error).body))
                break
            yield _event(answer.head | {"choices": [answer.choice(output)]})
        yield "data: [DONE]\n\n"


def _event(content: dict) -> str:
    return f"data: {json.dumps(content)}\n\n"


async def _unless_disconnected(request: Request, work):
    """What the work returns; None, and the work is cancelled, if the client goes away first."""

    async def gone():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(each) for each in (work, gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _failure(error: BaseException) -> JSONResponse:
    """A request that was accepted and could not be finished."""
    return _error(503 if isinstance(error, Unavailable) else 500, str(error))


def _error(status: int, message: str, param: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    content = {"message": message, "type": kind, "param": param, "code": None}
    headers = {"Retry-After": "1"} if status == 429 else None
    return JSONResponse({"error": content}, status, headers)


class BodyLimits:
    """Refuses a body that is too large, or that takes too long to arrive."""

    def __init__(self, app, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if int(declared) > self.limits.body_bytes:
            return await self._too_large()(scope, receive, send)
        received, whole, deadline = 0, False, time.monotonic() + self.limits.body_seconds

        async def limited():
            nonlocal received, whole
            if whole:  # nothing but the end of the connection can follow
                return await receive()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                seconds = self.limits.body_seconds
                raise HTTPException(408, f"the body did not arrive in {seconds:g} s") from None
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > self.limits.body_bytes:
                raise HTTPException(413, self._message())
            return message

        await self.app(scope, limited, send)

    def _too_large(self) -> JSONResponse:
        return _error(413, self._message())

    def _message(self) -> str:
        return f"the body is larger than {self.limits.body_bytes} bytes"


class Server(uvicorn.Server):
    """Serves until it is told to end; then gives the requests it has some seconds."""

    def __init__(
        self, app: FastAPI, background: Background, *, host: str, port: int, grace_seconds: float
    ) -> None:
        # What the engine ends is told to the clients; uvicorn cuts off only who does not read it.
        uvicorn_seconds = int(grace_seconds) + 5
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                log_level="warning",
                timeout_graceful_shutdown=uvicorn_seconds,
            )
        )
        self.background, self.grace_seconds = background, grace_seconds

    def handle_exit(self, sig: int, frame) -> None:
        self.background.drain(self.grace_seconds)
        super().handle_exit(sig, frame)
