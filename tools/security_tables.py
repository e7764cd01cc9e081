"""The tables of docs/security.md, made of the code that enforces them.

Usage: python tools/security_tables.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from bxmesh.server.security.permissions import METHODS, PERMISSIONS, ROLES

PAGE = Path(__file__).parents[1] / "docs" / "security.md"
BEGIN, END = "<!-- tables: make security-tables -->", "<!-- end of tables -->"


def main() -> None:
    """Writes the page, or says that it is not what the code says."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if new != text:
            sys.exit("docs/security.md is not what the code says; run: make security-tables")
        return
    PAGE.write_text(new)


def tables() -> str:
    """Returns the tables of permissions and of roles, in Markdown."""
    lines = [
        "| permission | allows | always asked for by | asked for besides by |",
        "|---|---|---|---|",
    ]
    for permission, description in PERMISSIONS.items():
        always = [_short(name) for name, rule in METHODS.items() if permission in rule.permissions]
        besides = [
            f"{_short(name)} {when}"
            for name, rule in METHODS.items()
            for asked, when in rule.also
            if asked == permission
        ]
        lines.append(
            f"| `{permission}` | {description} | {', '.join(always)} | {', '.join(_grouped(besides))} |"
        )
    everybody = [_short(name) for name, rule in METHODS.items() if not rule.permissions]
    lines += ["", f"Every identity may call {', '.join(everybody)}.", ""]
    lines += ["| role | for | permissions |", "|---|---|---|"]
    for role, (description, permissions) in ROLES.items():
        names = "all" if permissions == PERMISSIONS.keys() else ", ".join(sorted(permissions))
        lines.append(f"| `{role}` | {description} | {names} |")
    return "\n".join([*lines, ""])


def _short(method: str) -> str:
    service, _, name = method.removeprefix("/").rpartition("/")
    return f"{service.rpartition('.')[2].removesuffix('Service')}.{name}"


def _grouped(besides: Iterable[str]) -> list[str]:
    """Returns texts "Method when" with the methods of one `when` together."""
    groups: dict[str, list[str]] = {}
    for text in besides:
        name, _, when = text.partition(" ")
        groups.setdefault(when, []).append(name)
    return [f"{', '.join(names)} {when}" for when, names in groups.items()]


if __name__ == "__main__":
    main()
