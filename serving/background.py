"""Runs an engine in a thread of its own, for callers in an event loop.

The engine's thread does nothing but steps; between two of them it does what was asked meanwhile. News of
a request goes into a queue in the loop of whoever asked. A queue holds at most what the request generates,
so a reader may be as slow as it likes: nobody waits for it.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from serving.engine import Engine, Output
from serving.sampler import SamplingParams


class Unavailable(RuntimeError):
    """The engine takes no more requests, for now or for good."""


class Stream:
    """News of the requests of one caller, in the order of its prompts."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future = self.loop.create_future()
        self.news: asyncio.Queue[Output] = asyncio.Queue()
        self.numbers: list[int] = []  # of its requests; only the engine's thread touches it

    def tell(self, act: Callable, *arguments) -> None:
        """Call something in the caller's loop, if that still runs."""
        try:
            self.loop.call_soon_threadsafe(act, *arguments)
        except RuntimeError:
            pass  # the loop is closed: nobody listens any more

    def accept(self, error: Exception | None) -> None:
        if self.accepted.done():
            return  # the caller has gone
        if error is None:
            self.accepted.set_result(None)
        else:
            self.accepted.set_exception(error)


class Background:
    """An engine that serves callers in event loops.

    Args:
        most_requests: requests beyond so many are refused.
    """

    def __init__(self, engine: Engine, *, most_requests: int = 256) -> None:
        self.engine = engine
        self.most_requests = most_requests
        self.error: BaseException | None = None  # why the thread has died
        self._streams: dict[int, tuple[Stream, int]] = {}  # by request, with the prompt's place
        self._jobs: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._stopping = self._ended = False
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def accepting(self) -> bool:
        """Whether new requests are taken."""
        return self._deadline is None and not self._stopping and self._thread.is_alive()

    def drain(self, seconds: float) -> None:
        """Take no new requests from now on, and end those that are left after so many seconds."""
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + seconds
            self._changed.notify()

    def stop(self) -> None:
        """End every request and the thread; returns when it has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    async def serve(
        self, prompts: list[list[int]], params: list[SamplingParams]
    ) -> AsyncIterator[Output]:
        """Serve prompts together; yields their news, with the prompt's place for the request's number.

        Leaving the iteration cancels what is not finished.

        Raises:
            TypeError, ValueError: as :meth:`Engine.add`; then none of the prompts is served.
            Unavailable: there is no room for them, or the engine is about to stop.
        """
        stream = Stream()
        self._ask(lambda: self._add(stream, prompts, params))
        try:
            await stream.accepted
            left = len(prompts)
            while left:
                output = await stream.news.get()
                left -= output.last
                yield output
        finally:
            self._ask(lambda: self._forget(stream))

    # In the engine's thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                with self._changed:
                    while not (self._jobs or self.engine.busy or self._stopping):
                        self._changed.wait()
                    jobs, self._jobs = self._jobs, []
                for job in jobs:
                    job()
                if self._deadline is not None and time.monotonic() > self._deadline:
                    self._end_all(Unavailable("the server is shutting down"))
                for output in self.engine.step():
                    self._deliver(output)
        except BaseException as error:
            self.error = error
            raise
        finally:
            with self._changed:
                self._stopping = self._ended = True
                for job in self._jobs:  # their callers wait for an answer
                    job()
                self._end_all(self.error or Unavailable("the server is shutting down"))

    def _add(self, stream: Stream, prompts: list[list[int]], params: list[SamplingParams]) -> None:
        try:
            if self._stopping or self._deadline is not None:
                raise Unavailable("the server is shutting down")
            if len(self.engine.requests) + len(prompts) > self.most_requests:
                raise Unavailable(f"the server is busy with {len(self.engine.requests)} requests")
            for prompt, own in zip(prompts, params, strict=True):
                stream.numbers.append(self.engine.add(prompt, own))
        except Exception as error:
            for number in stream.numbers:
                self.engine.cancel(number)
            stream.tell(stream.accept, error)
            return
        for place, number in enumerate(stream.numbers):
            self._streams[number] = stream, place
        stream.tell(stream.accept, None)

    def _forget(self, stream: Stream) -> None:
        for number in stream.numbers:
            if self._streams.pop(number, None):
                self.engine.cancel(number)

    def _deliver(self, output: Output) -> None:
        stream, place = self._streams[output.request]
        if output.last:
            del self._streams[output.request]
        stream.tell(stream.news.put_nowait, replace(output, request=place))

    def _end_all(self, error: BaseException) -> None:
        for number in [*self._streams]:
            self.engine.cancel(number)
            self._deliver(Output(number, None, [], "error", last=True, error=error))

    # In the caller's thread.

    def _ask(self, job: Callable[[], None]) -> None:
        with self._changed:
            if self._ended:
                job()  # nobody else touches what the job does
            else:
                self._jobs.append(job)
                self._changed.notify()
