"""Reading CIF text that may be anything."""

import re
from typing import Any

import iotbx.cif

from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.words import words

_LOOP = re.compile(r"(?<!\S)loop_(?!\S)", re.IGNORECASE)
_GAP = r"(?:\s++(?:#[^\n]*+)?)++"
_HEADER_AND_VALUE = re.compile(
    rf"loop_(?:{_GAP}_\S++)++{_GAP}(?!(?:loop_|data_|save_|global_|stop_))(?=\S)", re.IGNORECASE
)

_LONGEST_VALUE = 64 * 1024


def reader(text: str, *, field: str, reason: str, strict: bool = True) -> Any:
    """Return iotbx's CIF reader over `text`; raises EngineError with `reason`."""
    for loop in _LOOP.finditer(text):
        # The parser in C++ ends the process over a loop without items or without values.
        if _HEADER_AND_VALUE.match(text, loop.start()) is None:
            line = text.count("\n", 0, loop.start()) + 1
            raise EngineError(
                reason,
                f"The loop_ on line {line} of the {field} CIF has no items or no values: the file "
                "is damaged or cut off.",
                field=field,
            )
    _refuse_long_values(text, field, reason)
    try:
        return iotbx.cif.reader(input_string=text, strict=strict)
    except Exception as error:
        raise EngineError(
            reason, f"The {field} file is not CIF: {words(error)}", field=field
        ) from error


def _refuse_long_values(text: str, field: str, reason: str) -> None:
    # The lexer's time grows with the square of a value's length, and nothing can interrupt it.
    at = 0
    while (start := _next_text_field(text, at)) >= 0:
        end = text.find("\n;", start + 1)
        if end < 0 or end - start > _LONGEST_VALUE:
            line = text.count("\n", 0, start + 1) + 1
            what = "does not end" if end < 0 else "is longer than any such value"
            raise EngineError(
                reason,
                f"The text that begins with a semicolon on line {line} of the {field} CIF {what}: "
                "the file is damaged or cut off.",
                field=field,
            )
        at = end + 2
    if max(map(len, text.splitlines()), default=0) > _LONGEST_VALUE:
        raise EngineError(
            reason, f"The {field} CIF has a line that is longer than any in a CIF.", field=field
        )


def _next_text_field(text: str, at: int) -> int:
    """Where the next line that begins with a semicolon begins, its newline included; -1 for none."""
    if at == 0 and text.startswith(";"):
        return 0
    return text.find("\n;", at)
