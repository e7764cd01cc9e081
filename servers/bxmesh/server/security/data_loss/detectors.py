"""The detectors of policies."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import re2

from bxmesh.security.v1 import policy_pb2

from .cards import find_cards
from .credentials import find_private_keys, find_secrets
from .finding import Finder, by_compiled
from .ibans import find_ibans
from .identifiers import find_emails, find_medical_records, find_national_ids, find_phones

__all__ = ["DETECTORS", "own_pattern"]

# The time for a text may grow with the size of the pattern.
_LARGEST_PROGRAM = 2_000

DETECTORS: Mapping[int, Finder] = MappingProxyType(
    {
        policy_pb2.DETECTOR_CARD: find_cards,
        policy_pb2.DETECTOR_IBAN: find_ibans,
        policy_pb2.DETECTOR_EMAIL: find_emails,
        policy_pb2.DETECTOR_PHONE: find_phones,
        policy_pb2.DETECTOR_NATIONAL_ID: find_national_ids,
        policy_pb2.DETECTOR_SECRET: find_secrets,
        policy_pb2.DETECTOR_PRIVATE_KEY: find_private_keys,
        policy_pb2.DETECTOR_MEDICAL_RECORD: find_medical_records,
    }
)
"""What finds what."""


def own_pattern(pattern: str) -> Finder:
    """Returns a finder of a pattern in RE2 syntax; raises ValueError that says what is wrong."""
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern.encode(), options)
    except re2.error as error:
        (why,) = error.args
        raise ValueError(f"is not in RE2 syntax: {why.decode(errors='replace')}") from error
    if compiled.programsize > _LARGEST_PROGRAM:
        raise ValueError("is too large when its repetitions are written out")
    if compiled.search(b"") is not None:
        raise ValueError("fits the empty text, and so everything")
    return by_compiled(compiled)
