"""The sandbox: a subset of Python in worker processes without files, network or our memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from pydantic_monty import (
    AsyncMonty,
    ExternalModule,
    Monty,
    MontyConversionError,
    MontyCrashedError,
    MontyError,
    MontyRuntimeError,
    MontySyntaxError,
    MontyTypingError,
    ResourceLimits,
)

from bxmesh.server.errors import MeshError, unavailable
from bxmesh.server.functions.engine import Call, HostFunction, Outcome, failed, over_limit
from bxmesh.server.functions.limits import MOST
from bxmesh.server.functions.peaks import peak_of, reset_peak
from bxmesh.server.streams.ending import end_tasks

__all__ = ["INPUT_NAME", "Sandbox", "sandbox"]

INPUT_NAME = "bxmesh_input"
"""Under which a call finds its arguments."""

_GRACE_SECONDS = 1.0
_MOST_HOST_CALLS = 1_000
# A worker is replaced after so many calls, so that nothing grows for ever.
_CALLS_OF_WORKER = 10_000
# The pool's own threads end a little later than the pool; an interpreter that ends before aborts.
_FAREWELL_SECONDS = 0.2
_STUBS = "from typing import Any\nasync def {}(*args: Any, **kwargs: Any) -> Any: ...\n"
_LONGEST_MESSAGE = 600


@asynccontextmanager
async def sandbox(workers: int) -> AsyncIterator[Sandbox]:
    """Keeps worker processes ready within a block."""
    settings: dict[str, Any] = {
        "max_processes": workers,
        "request_timeout": MOST.timeout + 10.0,
        "max_checkouts_per_worker": _CALLS_OF_WORKER,
        "feed_duration_limit_grace": _GRACE_SECONDS,
        "turn_duration_limit_grace": _GRACE_SECONDS,
    }
    threads = ThreadPoolExecutor(workers, "sandbox")
    pool = Monty(min_processes=workers, **settings)
    try:
        await asyncio.to_thread(pool.__enter__)
        async with AsyncMonty(min_processes=0, **settings) as hosting:
            yield Sandbox(pool, hosting, threads, workers)
    finally:
        await asyncio.to_thread(pool.__exit__, None, None, None)
        threads.shutdown()
        await asyncio.sleep(_FAREWELL_SECONDS)


class Sandbox:
    """Executes calls, as many at a time as there are workers; further ones wait."""

    def __init__(
        self, pool: Monty, hosting: AsyncMonty, threads: ThreadPoolExecutor, workers: int
    ) -> None:
        """Takes workers for calls that only compute, from a thread each, which is quicker, and for
        calls of the host, which need the event loop."""
        self._pool = pool
        self._hosting = hosting
        self._threads = threads
        self._free = asyncio.Semaphore(workers)

    async def run(self, call: Call) -> Outcome:
        """Runs a call in a fresh session; see `Engine`."""
        # Whoever waits for others does not lose its own time meanwhile.
        async with self._free:
            printer = _Printer(call)
            run = (
                _Hosting(self._hosting, call, printer)
                if call.host
                else _Computing(self._pool, self._threads, call, printer)
            )
            task = asyncio.create_task(run.run())
            printer.when_full(task.cancel)
            try:
                # The sandbox looks at its own clock first, which leaves its worker alive.
                async with asyncio.timeout(call.limits.timeout + _GRACE_SECONDS / 4) as timeout:
                    value = await task
            except TimeoutError:
                if not timeout.expired():
                    raise
                return run.outcome(error=_too_slow(call), limited=True)
            except MontyError as error:
                if not printer.full:
                    limited, problem = _problem(error, call)
                    return run.outcome(error=problem, limited=limited)
            except asyncio.CancelledError:
                if not printer.full:
                    raise
            finally:
                await end_tasks(task)
            if printer.full:
                return run.outcome(error=printer.refusal(), limited=True)
            return run.outcome(value=value)


def _feeds(call: Call) -> Iterator[tuple[str, dict[str, Any]]]:
    """The snippets that a session is fed one after another; the last one gives the value."""
    code = call.code
    if call.checked:
        # The checker only knows the host's modules when they were imported before, at the top.
        for module in sorted({name.rpartition(".")[0] for name in call.host}):
            yield f"import {module}", {}
        # Types are checked in the code alone, as the call is ours.
        yield code, {}
        code = ""
    awaiting = "await " if call.is_async else ""
    yield (
        f"{code}\n{awaiting}{call.entry_point}(**{INPUT_NAME})",
        {"inputs": {INPUT_NAME: dict(call.arguments)}, "skip_type_check": call.checked},
    )


class _Computing:
    """A call that only computes, in a thread."""

    def __init__(
        self, pool: Monty, threads: ThreadPoolExecutor, call: Call, printer: _Printer
    ) -> None:
        self._pool = pool
        self._threads = threads
        self._call = call
        self._printer = printer
        self._lock = threading.Lock()
        self._worker: int | None = None
        self._stopped = False
        self._seconds = 0.0
        self._peak = 0

    async def run(self) -> Any:
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._compute)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._stop()
            await asyncio.wait([future])
            future.exception()
            raise

    def outcome(self, **fields: Any) -> Outcome:
        return Outcome(cpu_seconds=self._seconds, peak_memory=self._peak, **fields)

    def _compute(self) -> Any:
        began = time.monotonic()
        with self._pool.checkout(**_session(self._call)) as session:
            worker = session.worker_pid
            reset_peak(worker)
            with self._lock:
                self._worker = worker
                stopped = self._stopped
            try:
                if stopped:
                    return None
                value = None
                for code, options in _feeds(self._call):
                    value = session.feed_run(code, print_callback=self._printer, **options)
                return value
            finally:
                # From here on it is another's.
                with self._lock:
                    self._worker = None
                self._seconds = time.monotonic() - began
                self._peak = peak_of(worker)

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._worker is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._worker, signal.SIGKILL)


class _Hosting:
    """A call that calls the host, on the event loop."""

    def __init__(self, pool: AsyncMonty, call: Call, printer: _Printer) -> None:
        self._pool = pool
        self._call = call
        self._printer = printer
        self._host = _Host(call)
        self._seconds = 0.0
        self._peak = 0

    async def run(self) -> Any:
        began = time.monotonic()
        async with self._pool.checkout(
            external_modules=self._host.modules, **_session(self._call)
        ) as session:
            worker = session.worker_pid
            reset_peak(worker)
            try:
                value = None
                for code, options in _feeds(self._call):
                    value = await session.feed_run(code, print_callback=self._printer, **options)
                return value
            finally:
                self._seconds = max(0.0, time.monotonic() - began - self._host.seconds)
                self._peak = peak_of(worker)

    def outcome(self, **fields: Any) -> Outcome:
        return Outcome(cpu_seconds=self._seconds, peak_memory=self._peak, **fields)


def _session(call: Call) -> dict[str, Any]:
    return {
        "script_name": "function.py",
        "limits": _limits(call),
        # A longer sleep than the limit is refused, not cut short.
        "os_policy": {"sleep_system_max": MOST.timeout},
        "type_check": call.checked,
        "type_check_format": "concise",
    }


def _limits(call: Call) -> ResourceLimits:
    return ResourceLimits(
        max_feed_duration_secs=call.limits.timeout,
        max_memory=call.limits.memory,
        max_recursion_depth=call.limits.recursion,
        max_suspensions=_MOST_HOST_CALLS,
        max_total_sleep_secs=call.limits.timeout,
    )


class _Host:
    """The granted host functions as modules, and how long they took."""

    def __init__(self, call: Call) -> None:
        self.seconds = 0.0
        self._waiting = 0
        self._since = 0.0
        by_module: defaultdict[str, dict[str, HostFunction]] = defaultdict(dict)
        for name, function in call.host.items():
            module, _, attribute = name.rpartition(".")
            by_module[module][attribute] = self._timed(function)
        self.modules: Mapping[str, ExternalModule] | None = {
            name: ExternalModule(
                functions, stubs="".join(_STUBS.format(attribute) for attribute in functions)
            )
            for name, functions in by_module.items()
        } or None

    def _timed(self, function: HostFunction) -> HostFunction:
        async def timed(*args: Any, **kwargs: Any) -> Any:
            self._waiting += 1
            if self._waiting == 1:
                self._since = time.monotonic()
            try:
                return await function(*args, **kwargs)
            except MeshError as error:
                # What crosses into the sandbox is an exception that it knows.
                raise RuntimeError(f"{error.reason}: {error.message}"[:_LONGEST_MESSAGE]) from None
            finally:
                self._waiting -= 1
                if not self._waiting:
                    self.seconds += time.monotonic() - self._since

        return timed


class _Printer:
    """Hands on what is printed, up to the limit, and then ends the call."""

    def __init__(self, call: Call) -> None:
        self._left = self._most = call.limits.output
        self._hand_on = call.printed
        self._loop = asyncio.get_running_loop()
        self._stop: Callable[[], object] = lambda: None
        self.full = False

    def when_full(self, stop: Callable[[], object]) -> None:
        self._stop = stop

    def __call__(self, stream: str, text: str) -> None:
        # It may come from the pool's thread.
        self._loop.call_soon_threadsafe(self._take, text)

    def _take(self, text: str) -> None:
        if self.full:
            return
        data = text.encode(errors="replace")
        self._hand_on(data[: self._left].decode(errors="ignore"))
        self._left -= len(data)
        if self._left < 0:
            self.full = True
            self._stop()

    def refusal(self) -> MeshError:
        return over_limit("OUTPUT_LIMIT", f"It printed more than {self._most} bytes.")


def _too_slow(call: Call) -> MeshError:
    return over_limit("TIME_LIMIT", f"It took longer than {call.limits.timeout:g} seconds.")


def _problem(error: MontyError, call: Call) -> tuple[bool, MeshError]:
    """Whether it is a limit, and the error."""
    match error:
        case MontyCrashedError(timed_out=True):
            return True, _too_slow(call)
        case MontyCrashedError():
            raise unavailable(
                "The sandbox was lost while the function ran. Try again.",
                reason="SANDBOX_LOST",
                retry_after=0.1,
            ) from None
        case MontySyntaxError():
            return False, failed("CODE_INVALID", _clip(str(error)))
        case MontyTypingError():
            return False, failed("TYPES_INVALID", _clip(str(error)))
        case MontyConversionError():
            return False, failed("OUTPUT_INVALID", _clip(str(error)))
        case MontyRuntimeError():
            return _runtime(error, call)
    raise unavailable(
        "The sandbox does not work. Try again.", reason="SANDBOX_LOST", retry_after=1.0
    ) from error


def _runtime(error: MontyRuntimeError, call: Call) -> tuple[bool, MeshError]:
    text = error.display("type-msg")
    kind, _, message = text.partition(": ")
    frames = error.traceback()
    # The last line is the call that we add.
    lines = call.code.count("\n") + 1
    line = next((frame.line for frame in reversed(frames) if frame.line <= lines), 0)
    if kind == "TimeoutError" and "limit exceeded" in message:
        return True, _too_slow(call)
    if kind == "MemoryError" and _says(
        message, "memory limit exceeded", "exceeded its memory limit"
    ):
        return True, over_limit(
            "MEMORY_LIMIT", f"It wanted more than {call.limits.memory} bytes of memory."
        )
    if kind == "RecursionError":
        return True, over_limit(
            "RECURSION_LIMIT", f"It called itself deeper than {call.limits.recursion} calls."
        )
    if kind == "RuntimeError" and message.startswith("suspension limit "):
        return True, over_limit(
            "HOST_CALL_LIMIT", f"It called the host more than {_MOST_HOST_CALLS} times."
        )
    if kind == "NotImplementedError" and _says(message, "syntax parser", "Wildcard imports"):
        message = message.replace(
            "The monty syntax parser does not yet support", "The sandbox knows no"
        )
        return False, failed("CODE_INVALID", f"{_clip(message)}{_where(line)}")
    return False, failed(
        "FUNCTION_FAILED", f"{_clip(text)}{_where(line)}", exception=kind[:100], line=str(line)
    )


def _where(line: int) -> str:
    return f" (line {line})" if line else ""


def _says(message: str, *texts: str) -> bool:
    return any(text in message for text in texts)


def _clip(text: str) -> str:
    text = text.encode(errors="replace").decode().strip()
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"
