"""The code of a function: text, a file, or a Python function that is at hand."""

from __future__ import annotations

import ast
import builtins
import inspect
import symtable
import textwrap
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from bxmesh.client.errors import InvalidInput
from bxmesh.client.names import invalid

__all__ = ["Code", "Source", "source_of"]

Code: TypeAlias = str | Path | Callable[..., Any]
"""Source text, the path of a file that holds it, or a Python function."""

_DEFAULT_ENTRY = "main"
_BUILTINS = frozenset(vars(builtins))
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Source:
    """Code, and what it says of itself."""

    text: str
    """The source text."""
    entry_point: str
    """What is called."""
    is_async: bool
    """Whether that is a coroutine."""
    input_schema: dict[str, Any] | None = None
    """What it takes, where annotations say it."""
    output_schema: dict[str, Any] | None = None
    """What it answers, likewise."""


def source_of(code: Code, entry_point: str = "", host_functions: Iterable[str] = ()) -> Source:
    """Returns the source of what is given; that of a Python function imports the modules of its
    host functions. Raises InvalidInput for what has none by itself."""
    if isinstance(code, Path):
        try:
            code = code.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise invalid("code", f"the code cannot be read: {error}") from error
    if isinstance(code, str):
        entry_point = entry_point or _DEFAULT_ENTRY
        return Source(code, entry_point, _is_async(code, entry_point))
    return _of_function(code, {name.rpartition(".")[0] for name in host_functions})


def _is_async(text: str, entry_point: str) -> bool:
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        # The server says what is wrong with it, and where.
        return False
    entries = [node for node in body if isinstance(node, _FUNCTIONS) and node.name == entry_point]
    return bool(entries) and isinstance(entries[-1], ast.AsyncFunctionDef)


def _of_function(function: Callable[..., Any], modules: Set[str]) -> Source:
    if not inspect.isfunction(function) or function.__name__ == "<lambda>":
        raise _unusable(
            f"{function!r} is no function made by `def`: write one, or give the source text"
        )
    name = function.__name__
    try:
        text = textwrap.dedent(inspect.getsource(function))
        node = ast.parse(text).body[0]
    except (OSError, SyntaxError) as error:
        raise _unusable(
            f"the source of {name} is not there, as for what is typed at a prompt: "
            "define it in a file, or give the source text"
        ) from error
    if not isinstance(node, _FUNCTIONS) or node.decorator_list:
        raise _unusable(f"{name} is decorated, and decorators stay here: give it without them")
    text, typed = _with_any(text, node)
    # The sandbox knows the types of its modules only when they are imported here.
    header = [f"import {module}" for module in sorted(modules)]
    header += ["from typing import Any"] * typed
    if header:
        text = "\n".join([*header, "", "", text])
    if strangers := _strangers(text):
        raise _unusable(
            f"{name} uses {', '.join(strangers)} from outside of itself: "
            "import or define that within it, or give the source text of all"
        )
    try:
        parameters: Any = TypeAdapter(cast(Any, function))
        takes = parameters.json_schema()
        hints = get_type_hints(function, include_extras=True)
        gives = (
            TypeAdapter(hints["return"]).json_schema(mode="serialization")
            if "return" in hints
            else None
        )
    except (PydanticUserError, NameError, TypeError) as error:
        raise _unusable(
            f"the annotations of {name} make no JSON Schema ({error}): "
            "use types that JSON has, or give input_schema and output_schema and no annotations"
        ) from error
    if takes.get("type") != "object":
        raise _unusable(f"{name} is called by keywords: it must not have parameters before / or *")
    return Source(text, name, inspect.iscoroutinefunction(function), takes, gives)


def _strangers(text: str) -> list[str]:
    """Names that code uses and neither defines nor has from Python itself."""
    module = symtable.symtable(text, "function", "exec")
    defined = {
        symbol.get_name()
        for symbol in module.get_symbols()
        if symbol.is_assigned() or symbol.is_imported()
    }
    found = {
        symbol.get_name()
        for table in _tables(module)
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (symbol.is_global() or table is module)
    }
    return sorted(found - defined - _BUILTINS)


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _with_any(text: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, bool]:
    """Writes Any for what the signature annotates with names of elsewhere, as schemas say it now;
    also returns whether there was any."""
    arguments = node.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    parameters += [each for each in (arguments.vararg, arguments.kwarg) if each]
    annotations = [*(each.annotation for each in parameters), node.returns]
    foreign = [each for each in annotations if each and _names(each) - _BUILTINS]
    # The tree counts in bytes of UTF-8.
    lines = [line.encode() for line in text.splitlines(keepends=True)]
    for each in sorted(foreign, key=lambda one: (one.lineno, one.col_offset), reverse=True):
        first, last = each.lineno - 1, (each.end_lineno or each.lineno) - 1
        lines[first : last + 1] = [
            lines[first][: each.col_offset] + b"Any" + lines[last][each.end_col_offset :]
        ]
    return b"".join(lines).decode(), bool(foreign)


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _unusable(message: str) -> InvalidInput:
    return invalid("code", message, "SOURCE_UNAVAILABLE")
