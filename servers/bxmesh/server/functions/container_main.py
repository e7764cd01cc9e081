"""What runs in the container: one call, told and answered in lines of JSON.

It is started by its path, without bxmesh: the container has nothing but Python's own library.
"""

from __future__ import annotations

import builtins
import json
import os
import resource
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CODE = "function.py"


class _Lines:
    """The way to the host; what is printed takes it too."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        self._in = os.fdopen(os.dup(0), "rb")
        self._lock = threading.Lock()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)

    def tell(self, **line: object) -> None:
        data = json.dumps(line, allow_nan=True).encode() + b"\n"
        with self._lock:
            while data:
                data = data[self._out.write(data) :]

    def hear(self) -> Any:
        return json.loads(self._in.readline() or b"null")


class _Printed:
    """Stands for standard output and error."""

    encoding = "utf-8"

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines

    def write(self, text: str) -> int:
        self._lines.tell(printed=text)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


class _Host:
    """Host functions, as modules that await answers."""

    def __init__(self, lines: _Lines, names: list[str]) -> None:
        self._lines = lines
        self._waiting: dict[int, Any] = {}
        for name in names:
            module, _, attribute = name.rpartition(".")
            made = sys.modules.setdefault(module, types.ModuleType(module))
            setattr(made, attribute, self._function(name))
        if names:
            threading.Thread(target=self._hear, daemon=True).start()

    def _function(self, name: str) -> Callable[..., Any]:
        import asyncio

        async def call(*args: object, **kwargs: object) -> object:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            number = len(self._waiting)
            self._waiting[number] = (loop, future)
            self._lines.tell(call=number, name=name, args=args, kwargs=kwargs)
            answer = await future
            if "error" in answer:
                raise RuntimeError(answer["error"])
            return answer["value"]

        return call

    def _hear(self) -> None:
        while answer := self._lines.hear():
            loop, future = self._waiting[answer["call"]]
            loop.call_soon_threadsafe(future.set_result, answer)


def _limit(limits: dict[str, Any]) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        held = int(file.read().split()[0]) * _PAGE
    for kind, most in (
        (resource.RLIMIT_AS, held + limits["memory"]),
        (resource.RLIMIT_CPU, int(limits["timeout"]) + 1),
        (resource.RLIMIT_FSIZE, limits["memory"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    sys.setrecursionlimit(limits["recursion"] + 50)


def _problem(error: BaseException) -> dict[str, object]:
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _CODE:
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        message = str(error)
    except BaseException as worse:
        message = f"<its message raised {type(worse).__name__}>"
    return {"kind": type(error).__name__, "message": message[:2000], "line": line}


def _main() -> None:
    lines = _Lines()
    call = lines.hear()
    sys.stdout = sys.stderr = _Printed(lines)
    host = _Host(lines, call["host"])
    # Loading pathlib would take longer than the rest.
    sys.path.append(os.path.dirname(__file__))  # noqa: PTH120
    import seccomp  # type: ignore[import-not-found]  # It lies beside this file there.

    sys.path.pop()
    # Nothing is started here, and nothing looks into what is.
    seccomp.refuse_dangerous_calls()
    _limit(call["limits"])
    try:
        names: dict[str, Any] = {"__name__": "function", "__builtins__": builtins, "_host": host}
        exec(compile(call["code"], _CODE, "exec"), names)
        result = names[call["entry_point"]](**call["arguments"])
        if call["is_async"]:
            import asyncio

            result = asyncio.run(result)
        lines.tell(value=result)
    except BaseException as error:
        lines.tell(error=_problem(error))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    lines.tell(cpu=usage.ru_utime + usage.ru_stime, peak=usage.ru_maxrss * 1024)
    os._exit(0)


_main()
