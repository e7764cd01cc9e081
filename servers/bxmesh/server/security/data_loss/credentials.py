"""Keys, tokens and passwords in their known forms, and private keys."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import re2

from .finding import Span, by_pattern, in_turn

__all__ = ["find_private_keys", "find_secrets"]

_KNOWN = (
    r"\b(?:"
    + "|".join(
        (
            r"bx_admin_[A-Za-z0-9_-]{43}",
            r"bx_[a-z2-7]{12}_[A-Za-z0-9_-]{43}",
            r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b",
            r"gh[pousr]_[A-Za-z0-9]{36}",
            r"github_pat_[A-Za-z0-9_]{22}[A-Za-z0-9_]*",
            r"gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent|oas)-[A-Za-z0-9_-]{20}[A-Za-z0-9_-]*",
            r"xox[abeoprs]-[A-Za-z0-9-]{10}[A-Za-z0-9-]*",
            r"xapp-[0-9]-[A-Za-z0-9-]{10}[A-Za-z0-9-]*",
            r"hooks\.slack\.com/services/T[A-Z0-9]{6,12}/B[A-Z0-9]{6,12}/[A-Za-z0-9]{16,32}",
            r"AIza[A-Za-z0-9_-]{35}",
            r"GOCSPX-[A-Za-z0-9_-]{28}",
            r"ya29\.[A-Za-z0-9_-]{20}[A-Za-z0-9_-]*",
            r"[rs]k_(?:live|test)_[A-Za-z0-9]{16}[A-Za-z0-9]*",
            r"whsec_[A-Za-z0-9+/]{32}[A-Za-z0-9+/]*",
            r"sk-(?:ant|proj|svcacct)-[A-Za-z0-9_-]{20}[A-Za-z0-9_-]*",
            r"sk-[A-Za-z0-9]{32}[A-Za-z0-9]*",
            r"npm_[A-Za-z0-9]{36}",
            r"pypi-AgEI[A-Za-z0-9_-]{50}[A-Za-z0-9_-]*",
            r"hf_[A-Za-z]{34}",
            r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",
            r"do[opr]_v1_[a-f0-9]{64}",
            r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}",
            # A JSON Web Token: two objects in base64url, and a signature.
            r"eyJ[A-Za-z0-9_-]{10}[A-Za-z0-9_-]*\.eyJ[A-Za-z0-9_-]{8}[A-Za-z0-9_-]*\.[A-Za-z0-9_-]{16}"
            r"[A-Za-z0-9_-]*",
        )
    )
    + ")"
)

# What stands where a secret would, and is none.
_PLACEHOLDERS = frozenset(
    [
        "null",
        "none",
        "nil",
        "true",
        "false",
        "undefined",
        "string",
        "required",
        "optional",
        "redacted",
        "secret",
        "password",
        "changeme",
        "example",
        "placeholder",
        "hidden",
        "[secret]",
    ]
)
_LEAST_ENTROPY = 3.0


def _is_password(text: str) -> bool:
    return text.lower() not in _PLACEHOLDERS and text[0] not in "<{$*" and len(set(text)) > 2


def _is_password_in_prose(text: str) -> bool:
    # "password: must be long" tells none.
    return _is_password(text) and not text.rstrip(".,;:!?)").isalpha()


def _is_random(text: str) -> bool:
    if not any(character.isdigit() for character in text) or text.isdigit():
        return False
    size = len(text)
    entropy = -sum(n / size * math.log2(n / size) for n in Counter(text).values())
    return entropy >= _LEAST_ENTROPY and _is_password(text)


_PASSWORD = r"(?i)(?:password|passwd|passphrase|passwort|pwd)"
_SECRET = (
    r"(?i)(?:secret|token|api[_-]?key|access[_-]?key|private[_-]?key|signing[_-]?key|credential)"
    r"[A-Za-z0-9_-]{0,16}"
)
_VALUE = r"""([^\s"',;&]{4}[^\s"',;&]*)"""

find_secrets = in_turn(
    by_pattern(_KNOWN),
    by_pattern(rf"{_PASSWORD}s?\s{{0,2}}=\s{{0,2}}{_VALUE}", _is_password),
    by_pattern(
        rf"""{_PASSWORD}s?["']?\s{{0,2}}[:=]\s{{0,2}}["']([^"'\n]{{4,256}})["']""", _is_password
    ),
    by_pattern(rf"{_PASSWORD}s?\s{{0,2}}:\s{{0,2}}{_VALUE}", _is_password_in_prose),
    by_pattern(
        rf"""{_SECRET}["']?\s{{0,2}}[:=]{{1,2}}\s{{0,2}}["']?([A-Za-z0-9+/_.~=-]{{16,256}})""",
        _is_random,
    ),
    by_pattern(
        r"(?i)\b(?:bearer|basic)\s{1,2}([A-Za-z0-9+/_.~=-]{16}[A-Za-z0-9+/_.~=-]*)", _is_random
    ),
    # A password within a URL.
    by_pattern(r"[a-z]://[^\s:/@\"]*:([^\s:/@\"]{3}[^\s:/@\"]*)@", _is_password),
)

_BEGIN: Any = re2.compile(
    rb"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    rb"|---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----"
    rb"|PuTTY-User-Key-File-[0-9]"
    rb"|\bAGE-SECRET-KEY-1[0-9A-Z]{58}"
)
_ENDS = {b"-": b"-----END", b"P": b"Private-MAC:"}
_LONGEST_KEY = 32 << 10


def find_private_keys(text: bytes) -> Iterator[Span | None]:
    """Yields where private keys are, to their end, or as far as they are there."""
    position = 0
    while (match := _BEGIN.search(text, position)) is not None:
        start, end = match.span()
        mark = _ENDS.get(text[start : start + 1])
        if mark is not None:
            found = text.find(mark, end, end + _LONGEST_KEY)
            line = text.find(b"\n", found, found + 256) if found >= 0 else -1
            if found >= 0:
                end = line if line >= 0 else min(len(text), found + 256)
            else:
                end = min(len(text), end + _LONGEST_KEY)
        position = end
        yield start, end
