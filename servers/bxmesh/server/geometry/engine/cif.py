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
    try:
        return iotbx.cif.reader(input_string=text, strict=strict)
    except Exception as error:
        raise EngineError(
            reason, f"The {field} file is not CIF: {words(error)}", field=field
        ) from error
