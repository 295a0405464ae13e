"""One decoder, many asynchronous consumers: the decoder has its own thread, so an event loop never waits for a step.

The decoder is touched by its thread only. Everything else reaches it through a queue of commands, which is emptied
between two steps; everything it says goes to a `_Stream`, which joins what its consumer has not read yet.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from pasta_ray.actors.messages import DecoderFactory, DecoderLike, ReplicaStats, StepError
from pasta_ray.engine.messages import (
    BodyRequest,
    BranchClosed,
    Event,
    Events,
    Finished,
    PromiseOpened,
    Request,
    is_last,
)
from pasta_ray.engine.progress import Step
from pasta_ray.errors import InputError, PastaError, ReplicaError
from pasta_ray.logs import fields

if TYPE_CHECKING:
    from pasta_ray.engine.decoder import Decoder

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Stream:
    """The events that one consumer has not read yet. Filled from any thread, read on the consumer's event loop, at most
    once in ``period_s()`` but for the last.

    The loop is woken once a message and at the end, not at each step: whenever it runs, the decoding thread waits for
    the interpreter.
    """

    def __init__(self, request: Request | BodyRequest, period_s: Callable[[], float]) -> None:
        self.trace = request.trace
        self._period_s = period_s
        self._read_at = -math.inf
        self._request_id = request.id
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._lock = threading.Lock()  # of what follows
        self._unread: list[Event] = []
        self._steps: list[Step] = []
        self._error: PastaError | None = None
        self._over = False
        self._woken = False

    def put(self, message: Events) -> None:
        with self._lock:
            self._unread += message.events
            self._steps += message.steps
            self._over |= any(map(is_last, message.events))
            self._wake()

    def fail(self, error: PastaError) -> None:
        with self._lock:
            self._error, self._over = error, True
            self._wake()

    def __aiter__(self) -> AsyncIterator[Events]:
        return self

    async def __anext__(self) -> Events:
        due = self._read_at + self._period_s()
        if due > self._loop.time():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._ended.wait()
        while (message := self._take()) is None:
            self._changed.clear()
            await self._changed.wait()
        self._read_at = self._loop.time()
        return message

    def _take(self) -> Events | None:
        """What is unread; None where the loop is to be woken for it."""
        with self._lock:
            self._woken = False
            if not self._unread:
                if self._error is not None:
                    raise self._error
                if self._over:
                    raise StopAsyncIteration
                return None
            message = Events(self._request_id, tuple(self._unread), tuple(self._steps))
            self._unread, self._steps = [], []
            return message

    def _wake(self) -> None:
        if self._over or (self._unread and not self._woken):
            self._woken = True
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._tell, self._over)

    def _tell(self, ended: bool) -> None:
        if ended:
            self._ended.set()
        self._changed.set()


@dataclass(frozen=True)
class _Submit:
    request: Request | BodyRequest
    stream: _Stream


@dataclass(frozen=True)
class _Call:
    function: Callable[[DecoderLike], Any]
    result: "Future[Any]"


@dataclass(frozen=True)
class _Cancel:
    """Of the request that ``stream`` reads, or without one, whoever reads it."""

    request_id: str
    stream: _Stream | None = None


class _Stop:
    pass


def step_curve(parts: "Iterable[Decoder]") -> tuple[tuple[int, float], ...]:
    """Of a replica's decoders, which share the machine: of the first that has one."""
    return next((tuple(part.curve.points) for part in parts if part.curve is not None), ())


class DecodeLoop:
    """Answers requests with one decoder. Its public methods may be called from any thread and any event loop.

    The decoder is made on its thread too, because how many threads a matrix product uses is a thread's own setting.
    The constructor returns when it is there, and raises what its making raised.
    """

    def __init__(self, make_decoder: DecoderFactory, replica: str = "local") -> None:
        self._replica = replica
        self._commands: SimpleQueue[_Submit | _Call | _Cancel | _Stop] = SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        self._stopping = False
        self._broken: str | None = None
        self._num_cancelled = 0
        self._stats = ReplicaStats(replica, 0, 0, 0)
        self._step_s = self._one_row_step_s = 0.0
        made: Future[DecoderLike] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(make_decoder, made), name=f"decode-{replica}", daemon=True
        )
        self._thread.start()
        self._decoder = made.result()

    async def decode(
        self, request: Request | BodyRequest, period_s: Callable[[], float] = lambda: 0.0
    ) -> AsyncGenerator[Events, None]:
        """The request's events, one message a step at most and one in ``period_s()``, for which only the end does not
        wait. Closing the iterator early frees all its slots.

        Raises InputError where the decoder refuses the request, StepError where decoding failed.
        """
        self.check()
        stream = _Stream(request, period_s)
        self._commands.put(_Submit(request, stream))
        try:
            async for events in stream:
                yield events
        finally:
            self._commands.put(_Cancel(request.id, stream))

    def cancel(self, request_id: str) -> None:
        """Forget a request before the next step; one that is unknown or finished is left alone."""
        self._commands.put(_Cancel(request_id))

    def call(self, function: Callable[[DecoderLike], T]) -> "Future[T]":
        """Run ``function`` in the decoder's thread between two steps; what it gives or raises is the future's. Raises
        ReplicaError when this loop can answer nothing any more."""
        self.check()
        result: Future[T] = Future()
        self._commands.put(_Call(function, result))
        return result

    @property
    def num_streams(self) -> int:
        """Requests and bodies that are being decoded for somebody."""
        return len(self._streams)

    def stats(self) -> ReplicaStats:
        """Live counts after the latest step."""
        parts = self._decoder.parts.values()
        bounds = [part.engine.pool.max_bytes for part in parts]
        max_kv_bytes = sum(filter(None, bounds)) if bounds and all(bounds) else None
        token_bytes = max((part.store.bytes_per_token for part in parts), default=0)
        return replace(self._stats, curve=step_curve(parts), max_kv_bytes=max_kv_bytes, kv_bytes_per_token=token_bytes)

    def check(self) -> None:
        """Raises ReplicaError when this loop can answer nothing any more."""
        if self._broken is not None:
            raise ReplicaError(f"replica {self._replica} is broken and must be restarted: {self._broken}")
        if self._stopping or not self._thread.is_alive():
            raise ReplicaError(f"replica {self._replica} has been stopped")

    def stop(self) -> None:
        """End the thread after the step that it is in; requests in flight fail."""
        self._stopping = True
        self._commands.put(_Stop())
        self._thread.join()

    def _run(self, make_decoder: DecoderFactory, made: "Future[DecoderLike]") -> None:
        try:
            self._decoder = make_decoder(self._replica)
        except BaseException as error:  # handed to the constructor, which raises it
            made.set_exception(error)
            return
        made.set_result(self._decoder)
        while self._broken is None and self._obey():
            if self._decoder.busy:
                self._step()
            self._count()

    def _obey(self) -> bool:
        """Carry out the waiting commands; wait for one when there is nothing else to do. False at the end."""
        block = not self._decoder.busy
        while True:
            try:
                command = self._commands.get(block)
            except Empty:
                return True
            match command:
                case _Submit(request, stream):
                    self._submit(request, stream)
                case _Call(function, result):
                    self._answer(function, result)
                case _Cancel(request_id, stream):
                    if request_id in self._streams and stream in (None, self._streams[request_id]):
                        self._give_up(request_id, f"request {request_id!r} was cancelled")
                case _Stop():
                    self._fail_all(ReplicaError(f"replica {self._replica} was stopped"))
                    return False
            block = False

    def _answer(self, function: Callable[[DecoderLike], Any], result: "Future[Any]") -> None:
        if not result.set_running_or_notify_cancel():
            return
        try:
            result.set_result(function(self._decoder))
        except Exception as error:  # the caller's to handle
            result.set_exception(error)

    def _submit(self, request: Request | BodyRequest, stream: _Stream) -> None:
        if request.id in self._streams and isinstance(request, Request) and not request.progress.elapsed_s:
            stream.fail(InputError(f"request id {request.id!r} is already being answered"))
            return
        if request.id in self._streams:  # whoever asked for it is gone, or gave it up for lost
            self._give_up(request.id, f"request {request.id!r} goes on for another reader")
        try:
            self._decoder.submit(request)
        except PastaError as error:
            stream.fail(error)
        except Exception as error:  # a fault in one request must not end the thread that serves them all
            stream.fail(self._step_error(error))
            self._cancel(request.id)
        else:
            self._streams[request.id] = stream

    def _step(self) -> None:
        try:
            messages = self._timed_step()
            self._count()
            for message in messages:
                stream = self._streams.get(message.request_id)
                if stream is None:
                    continue
                if logger.isEnabledFor(logging.DEBUG):
                    self._log_branches(stream.trace, message)
                stream.put(message)
                if any(map(is_last, message.events)):
                    del self._streams[message.request_id]
        except Exception as error:  # every consumer hears of it, none waits for ever
            self._fail_all(self._step_error(error))

    def _timed_step(self) -> list[Events]:
        rows, began = self._decoder.counters.num_rows, time.perf_counter()
        messages = self._decoder.step()
        took_s = time.perf_counter() - began
        self._step_s += took_s
        if self._decoder.counters.num_rows == rows + 1:
            self._one_row_step_s = took_s
        return messages

    def _log_branches(self, trace: str, message: Events) -> None:
        told = {"trace": trace, "request": message.request_id, "replica": self._replica}
        for event in message.events:
            match event:
                case PromiseOpened():
                    topic, tokens = event.topic, event.tokens_predicted
                    logger.debug("branch opened", extra=fields(**told, branch=event.branch, topic=topic, tokens=tokens))
                case BranchClosed():
                    logger.debug(
                        "branch closed", extra=fields(**told, branch=event.branch, finish_reason=event.finish_reason)
                    )
                case Finished():
                    logger.debug("decoded", extra=fields(**told, finish_reason=event.report.finish_reason))

    def _give_up(self, request_id: str, why: str) -> None:
        self._streams.pop(request_id).fail(ReplicaError(why))
        self._num_cancelled += 1
        self._cancel(request_id)

    def _fail_all(self, error: PastaError) -> None:
        failed, self._streams = self._streams, {}
        for request_id, stream in failed.items():
            self._cancel(request_id)
            stream.fail(error)

    def _cancel(self, request_id: str) -> None:
        try:
            self._decoder.cancel(request_id)
        except Exception as error:  # the decoder's state is unknown: `check` reports it from now on
            self._broken = f"{type(error).__name__}: {error}"
            streams, self._streams = self._streams, {}
            for stream in streams.values():
                stream.fail(self._step_error(error))

    def _step_error(self, error: Exception) -> StepError:
        return StepError(f"decoding failed on replica {self._replica}: {type(error).__name__}: {error}")

    def _count(self) -> None:
        d = self._decoder
        live = (d.num_requests, d.num_branches, d.num_slots, self._num_cancelled)
        self._stats = ReplicaStats(self._replica, *live, d.counters, self._step_s, self._one_row_step_s)
