"""E-mail addresses, telephones, and numbers of people: national and medical."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from .finding import by_pattern, in_turn, is_valid

__all__ = ["find_emails", "find_medical_records", "find_national_ids", "find_phones"]

find_emails = by_pattern(
    r"[A-Za-z0-9][A-Za-z0-9._%+'-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,24}\b",
    lambda text: text.index("@") <= 64 and len(text) <= 254 and ".." not in text,
)


@cache
def _phonenumbers() -> Any:
    # It knows the numbers of all countries, which takes a moment to load.
    return import_module("phonenumbers")


def _is_phone(text: str) -> bool:
    phonenumbers = _phonenumbers()
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(text)))
    except phonenumbers.NumberParseException:
        return False


find_phones = by_pattern(r"\+[1-9](?:[ ().\-/]{0,2}[0-9]){6,14}\b", _is_phone)

_NOT_NINO = frozenset(["BG", "GB", "KN", "NK", "NT", "TN", "ZZ"])
_GERMAN = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _is_german_document(text: str) -> bool:
    total = sum(
        _GERMAN.index(character) * weight
        for character, weight in zip(text[:9], (7, 3, 1) * 3, strict=True)
    )
    return total % 10 == int(text[9]) and any(character.isdigit() for character in text[:9])


_US_SSN, _FR_NIR = is_valid("us.ssn"), is_valid("fr.nir")

find_national_ids = in_turn(
    by_pattern(r"\b[0-9]{3}[- ][0-9]{2}[- ][0-9]{4}\b", _US_SSN),
    by_pattern(r"(?i)\b(?:ssn|social security)[^0-9\n]{0,24}([0-9]{9})\b", _US_SSN),
    # The United Kingdom's national insurance number has no check digit.
    by_pattern(
        r"\b[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]\b",
        lambda text: text[:2] not in _NOT_NINO,
    ),
    # Germany: the tax number and the identity card with its check digit.
    by_pattern(r"\b[1-9][0-9] ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}\b", is_valid("de.idnr")),
    by_pattern(r"\b[CFGHJKLMNPRTVWXYZ][0-9CFGHJKLMNPRTVWXYZ]{8}[0-9]\b", _is_german_document),
    by_pattern(
        r"\b[1-478] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}\b",
        _FR_NIR,
    ),
    by_pattern(r"\b[0-9]{8}-?[A-HJ-NP-TV-Z]\b", is_valid("es.dni")),
    by_pattern(r"\b[XYZ]-?[0-9]{7}-?[A-HJ-NP-TV-Z]\b", is_valid("es.nie")),
    by_pattern(
        r"\b[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z]\b",
        is_valid("it.codicefiscale"),
    ),
    by_pattern(r"(?i)\b(?:bsn|burgerservicenummer)[^0-9\n]{0,24}([0-9]{9})\b", is_valid("nl.bsn")),
    by_pattern(r"(?i)\bpesel[^0-9\n]{0,24}([0-9]{11})\b", is_valid("pl.pesel")),
    by_pattern(r"\b[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}[. ][0-9]{2}\b", is_valid("be.nn")),
    by_pattern(r"\b(?:19|20)?[0-9]{6}[-+][0-9]{4}\b", is_valid("se.personnummer")),
    by_pattern(r"\b[0-9]{6}[-+A-FU-Y][0-9]{3}[0-9A-FHJ-NPR-Y]\b", is_valid("fi.hetu")),
    by_pattern(r"\b756\.[0-9]{4}\.[0-9]{4}\.[0-9]{2}\b", is_valid("ch.ssn")),
    by_pattern(r"\b[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}\b", is_valid("br.cpf")),
    by_pattern(r"\b[2-9][0-9]{3} [0-9]{4} [0-9]{4}\b", is_valid("in_.aadhaar")),
    by_pattern(r"\b[1-9][0-9]{2}[- ][0-9]{3}[- ][0-9]{3}\b", is_valid("ca.sin")),
)
"""Where a number has a form of its own, that is enough; where it is but digits, a word must say
what it is, or many check digits."""

_NHS = is_valid("gb.nhs")

find_medical_records = in_turn(
    by_pattern(
        r"(?i)\b(?:mrn|medical[ _-]?record(?:[ _-]?(?:number|no\.?|id))?|patient[ _-]?(?:number|no\.?|id))"
        r"""["']?\s{0,3}[:=#]{0,2}\s{0,3}["']?([A-Z]{0,3}-?[0-9]{5,12})\b"""
    ),
    by_pattern(r"\b[0-9]{3}[- ][0-9]{3}[- ][0-9]{4}\b", _NHS),
    by_pattern(r"(?i)\bnhs[^0-9\n]{0,24}([0-9]{10})\b", _NHS),
)
