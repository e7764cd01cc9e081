"""The code of a function, as far as it can be known without running it."""

from __future__ import annotations

import ast
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from bxmesh.server.functions.sandbox import INPUT_NAME

__all__ = ["DEFAULT_IMPORTS", "Problem", "problems_of"]

DEFAULT_IMPORTS = frozenset(
    {"json", "datetime", "math", "re", "collections", "itertools", "functools"}
)
"""What a function may import that says nothing."""
# They make nothing available that is not there.
_ALWAYS = frozenset({"__future__", "typing"})
# Python 3.11 before 3.11.8 counts the depth of all trees that are built at a time as one, and fails with
# SystemError when that is none (python/cpython#106905).
_PARSING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Problem:
    """Why code cannot be stored."""

    reason: str
    field: str
    description: str


def problems_of(
    code: str,
    entry_point: str,
    *,
    is_async: bool,
    imports: Collection[str],
    host_functions: Collection[str],
    schema: dict[str, Any] | None,
) -> list[Problem]:
    """Returns what is wrong with code: it does not parse, imports more than `imports` and the
    modules of its host functions, or its entry point does not fit the JSON Schema of its input.

    Takes the time that parsing takes: not for the event loop.
    """
    try:
        with _PARSING:
            tree = ast.parse(code)
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        return [_syntax(f"{where}{error.msg}")]
    except (ValueError, RecursionError, MemoryError) as error:
        return [_syntax(str(error) or "it is nested too deeply")]
    allowed = {*imports, *_ALWAYS, *(name.rpartition(".")[0] for name in host_functions)}
    problems = list(_forbidden(tree, allowed))
    entry = _entry(tree, entry_point)
    if entry is None:
        problems.append(
            Problem(
                "ENTRY_POINT_MISSING",
                "entry_point",
                f"the code defines no function {entry_point} at its top level",
            )
        )
    else:
        problems += _kind(entry, is_async, host_functions)
        problems += _signature(entry, schema)
    return problems


def _syntax(description: str) -> Problem:
    return Problem("CODE_INVALID", "code", description[:200])


def _forbidden(tree: ast.Module, allowed: Collection[str]) -> Iterator[Problem]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                wanted = [name.name for name in names]
            case ast.ImportFrom(module=module, level=0):
                wanted = [module or ""]
            case ast.ImportFrom():
                yield Problem(
                    "IMPORT_NOT_ALLOWED",
                    "code",
                    f"line {node.lineno}: there is no package to import from",
                )
                continue
            case ast.Name(id=name) | ast.arg(arg=name) if name == INPUT_NAME:
                yield _taken(node)
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                if node.name == INPUT_NAME:
                    yield _taken(node)
                continue
            case ast.alias(name=module, asname=name) if INPUT_NAME in (module, name):
                yield _taken(node)
                continue
            case _:
                continue
        for name in wanted:
            if not any(name == each or name.startswith(f"{each}.") for each in allowed if each):
                yield Problem(
                    "IMPORT_NOT_ALLOWED",
                    "code",
                    f"line {node.lineno}: {name[:100]} is not among the allowed imports",
                )


def _taken(node: ast.expr | ast.stmt | ast.arg | ast.alias) -> Problem:
    return Problem("CODE_INVALID", "code", f"line {node.lineno}: the name {INPUT_NAME} is taken")


def _entry(tree: ast.Module, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    found = None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            found = node
    return found


def _kind(
    entry: ast.FunctionDef | ast.AsyncFunctionDef, is_async: bool, host_functions: Collection[str]
) -> Iterator[Problem]:
    coroutine = isinstance(entry, ast.AsyncFunctionDef)
    if coroutine != is_async:
        yield Problem(
            "SIGNATURE_MISMATCH",
            "is_async",
            f"{entry.name} is {'a' if coroutine else 'no'} coroutine (async def)",
        )
    elif host_functions and not coroutine:
        yield Problem(
            "SIGNATURE_MISMATCH",
            "is_async",
            f"{entry.name} must be a coroutine (async def) to await its host functions",
        )


def _signature(
    entry: ast.FunctionDef | ast.AsyncFunctionDef, schema: dict[str, Any] | None
) -> Iterator[Problem]:
    arguments = entry.args
    positional = arguments.posonlyargs + arguments.args
    without = len(positional) - len(arguments.defaults)
    required = {argument.arg for argument in positional[:without]} | {
        argument.arg
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is None
    }
    for index, argument in enumerate(arguments.posonlyargs):
        if index < without:
            yield _mismatch(entry, f"the parameter {argument.arg} cannot be given by name")
    if schema is None:
        return
    taken = {argument.arg for argument in [*arguments.args, *arguments.kwonlyargs]}
    given = schema.get("properties", {})
    always = schema.get("required", [])
    if arguments.kwarg is None:
        for name in given:
            if name not in taken:
                yield _mismatch(entry, f"there is no parameter for the schema's property {name}")
    for name in sorted(required):
        if name not in always:
            yield _mismatch(
                entry, f"the parameter {name} has no default, and the schema does not require it"
            )


def _mismatch(entry: ast.FunctionDef | ast.AsyncFunctionDef, what: str) -> Problem:
    return Problem("SIGNATURE_MISMATCH", "code", f"line {entry.lineno}: {what}"[:200])
