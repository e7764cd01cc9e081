"""HTML and SVG that cannot be broken into: what is not markup is escaped."""

from __future__ import annotations

import html

__all__ = ["Markup", "element", "join"]

_EMPTY = frozenset({"meta", "br", "rect", "circle", "line", "path"})


class Markup(str):
    """Text that is HTML already; made by this module only."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float) -> Markup:
    """Returns an element; text and values are escaped, and lose their control characters.

    A trailing underscore of an attribute's name is dropped, other underscores become hyphens.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_escaped(_number(value))}"'
        for name, value in attributes.items()
    )
    if tag in _EMPTY and not children:
        return Markup(f"<{tag}{written}/>")
    return Markup(f"<{tag}{written}>{join(*children)}</{tag}>")


def join(*parts: str) -> Markup:
    """Returns the parts one after the other; text among them is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _escaped(text: str) -> str:
    # Control and format characters could hide what a name is, or turn the line around.
    return html.escape("".join(each if each.isprintable() else "\ufffd" for each in text))
