"""What the detectors of data-loss prevention find, what they let be, and that their work is bounded."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator

import pytest

from bxmesh.agent.v1 import message_pb2
from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.server.security.data_loss.content import read
from bxmesh.server.security.data_loss.detectors import DETECTORS, own_pattern
from bxmesh.server.security.data_loss.finding import MOST_CANDIDATES, MOST_HITS, find

CARD, IBAN, EMAIL, PHONE = (
    pb.DETECTOR_CARD,
    pb.DETECTOR_IBAN,
    pb.DETECTOR_EMAIL,
    pb.DETECTOR_PHONE,
)
NATIONAL_ID, SECRET = pb.DETECTOR_NATIONAL_ID, pb.DETECTOR_SECRET
PRIVATE_KEY, MEDICAL = pb.DETECTOR_PRIVATE_KEY, pb.DETECTOR_MEDICAL_RECORD

MUCH = 1 << 19


def found(detector: int, text: str) -> list[str]:
    """What is found in a text."""
    data = text.encode()
    return [data[start:end].decode() for start, end in find(DETECTORS[detector], data).spans]


# The test numbers that the card networks, the registries and the standards publish.
THERE = [
    (CARD, "4111111111111111"),
    (CARD, "4111 1111 1111 1111"),
    (CARD, "4111-1111-1111-1111"),
    (CARD, "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"),
    (CARD, "4222222222222"),
    (CARD, "5555555555554444"),
    (CARD, "2223003122003222"),
    (CARD, "378282246310005"),
    (CARD, "3782 822463 10005"),
    (CARD, "6011111111111117"),
    (CARD, "30569309025904"),
    (CARD, "3056 930902 5904"),
    (CARD, "3530111333300000"),
    (CARD, "6205500000000000004"),
    (IBAN, "GB82WEST12345698765432"),
    (IBAN, "GB82 WEST 1234 5698 7654 32"),
    (IBAN, "DE89 3704 0044 0532 0130 00"),
    (IBAN, "FR14 2004 1010 0505 0001 3M02 606"),
    (IBAN, "MT84MALT011000012345MTLCAST001S"),
    (IBAN, "NO93 8601 1117 947"),
    (EMAIL, "jane.doe+test@mail.example.org"),
    (EMAIL, "o'brien@example.co.uk"),
    (PHONE, "+1 202-555-0143"),
    (PHONE, "+44 20 7946 0958"),
    (PHONE, "+49 (30) 901820"),
    (PHONE, "+33142685300"),
    (NATIONAL_ID, "536-90-4399"),
    (NATIONAL_ID, "AB 12 34 56 C"),
    (NATIONAL_ID, "36574261809"),
    (NATIONAL_ID, "L01X00T471"),
    (NATIONAL_ID, "2 95 10 99 126 111 93"),
    (NATIONAL_ID, "54362315K"),
    (NATIONAL_ID, "X2482300W"),
    (NATIONAL_ID, "RCCMNL83S18D969H"),
    (NATIONAL_ID, "880320-0016"),
    (NATIONAL_ID, "131052-308T"),
    (NATIONAL_ID, "756.9217.0769.85"),
    (NATIONAL_ID, "390.533.447-05"),
    (NATIONAL_ID, "85.07.30-033 28"),
    (SECRET, "bx_abcdefghij23_" + "A" * 43),
    (SECRET, "bx_admin_" + "k" * 43),
    (SECRET, "AKIAIOSFODNN7EXAMPLE"),
    (SECRET, "ghp_" + "a1" * 18),
    (SECRET, "glpat-" + "x1y2" * 5),
    (SECRET, "xoxb-123456789012-abcdefghijkl"),
    (SECRET, "AIza" + "Sy0_-" * 7),
    (SECRET, "sk_live_" + "4eC39HqLyjWDarjt"),
    (
        SECRET,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0."
        "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    ),
    (MEDICAL, "943 476 5919"),
]


@pytest.mark.parametrize(("detector", "text"), THERE)
def test_what_is_there_is_found(detector: int, text: str) -> None:
    for around in ("{}", "It is {}, is it not?", '{{"a": "{}"}}', "12 {}\n77", "x={};", "({})"):
        assert found(detector, around.format(text)) == [text], around


@pytest.mark.parametrize(
    ("detector", "text"),
    [
        (CARD, "4111111111111112"),
        (CARD, "1234567812345670"),
        (CARD, "41111111111111110000000000"),
        (CARD, "0.4111111111111111"),
        (CARD, "4111111111111111.25"),
        (CARD, "4111 1111-1111 1111"),
        (CARD, "41 111111 1111 1111"),
        (CARD, "a4111111111111111"),
        (CARD, "1700000000000"),
        (IBAN, "GB82WEST12345698765433"),
        (IBAN, "GB82WEST1234569876543"),
        (IBAN, "XX82WEST12345698765432"),
        (EMAIL, "user@localhost"),
        (EMAIL, "a..b@example.org"),
        (EMAIL, "x" * 65 + "@example.org"),
        (PHONE, "+12345678"),
        (PHONE, "+4.567 89 123"),
        (PHONE, "1 + 2025550143"),
        (NATIONAL_ID, "000-12-3456"),
        (NATIONAL_ID, "666-12-3456"),
        (NATIONAL_ID, "900-12-3456"),
        (NATIONAL_ID, "536-00-4399"),
        (NATIONAL_ID, "536-90-0000"),
        (NATIONAL_ID, "GB 12 34 56 C"),
        (NATIONAL_ID, "36574261808"),
        (NATIONAL_ID, "0.36574261809"),
        (NATIONAL_ID, "L01X00T470"),
        (NATIONAL_ID, "54362315A"),
        (NATIONAL_ID, "RCCMNL83S18D969A"),
        (SECRET, "max_tokens: 10241024102410241024"),
        (SECRET, "password: must be long"),
        (SECRET, "password=null"),
        (SECRET, "token = tokenize(everything)"),
        (SECRET, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
        (SECRET, "the basic understanding"),
        (PRIVATE_KEY, "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----"),
        (MEDICAL, "943 476 5918"),
        (MEDICAL, "mrna 12345678"),
    ],
)
def test_what_only_looks_like_it_is_let_be(detector: int, text: str) -> None:
    assert found(detector, f"See {text} here") == []


@pytest.mark.parametrize(
    ("detector", "text", "hit"),
    [
        (SECRET, "password=hunter2", "hunter2"),
        (SECRET, 'DB_PASSWORD = "correct horse"', "correct horse"),
        (SECRET, '{"password": "hunter"}', "hunter"),
        (SECRET, "passwd: hunter2;", "hunter2"),
        (SECRET, "postgres://user:s3cr3t@db/x", "s3cr3t"),
        (SECRET, "Authorization: Bearer abcdef0123456789", "abcdef0123456789"),
        (SECRET, "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPx", "wJalrXUtnFEMI/K7MDENG/bPx"),
        (SECRET, '"api_key": "9f86d081884c7d659a2feaa0"', "9f86d081884c7d659a2feaa0"),
        (MEDICAL, "MRN: 00123456", "00123456"),
        (MEDICAL, '{"patient_id": "AB-123456"}', "AB-123456"),
        (MEDICAL, "Medical record number 1234567", "1234567"),
        (MEDICAL, "NHS no. 9434765919", "9434765919"),
        (NATIONAL_ID, "SSN 536904399", "536904399"),
        (NATIONAL_ID, "PESEL: 44051401359", "44051401359"),
        (CARD, "[4111111111111111.0]", "4111111111111111"),
        (CARD, "99 4111 1111 1111 1111 12", "4111 1111 1111 1111"),
    ],
)
def test_what_is_known_by_its_surroundings(detector: int, text: str, hit: str) -> None:
    assert found(detector, text) == [hit]


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
def test_private_keys_are_found_whole(kind: str) -> None:
    key = f"-----BEGIN {kind}PRIVATE KEY-----\nMIIEvQ==\nAAAA\n-----END {kind}PRIVATE KEY-----"
    assert found(PRIVATE_KEY, f"here:\n{key}\nthere") == [key]
    cut = key[:40]
    assert found(PRIVATE_KEY, f"here:\n{cut}") == [cut]
    pgp = "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQ\n-----END PGP PRIVATE KEY BLOCK-----"
    assert found(PRIVATE_KEY, pgp) == [pgp]
    putty = "PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\nAAA\nPrivate-MAC: 12ab"
    assert found(PRIVATE_KEY, putty + "\nend") == [putty]


def hostile() -> Iterator[tuple[str, bytes]]:
    """Much of what would be expensive for somebody who tries everything."""
    for unit in (
        *("1", "+", "4 ", "1 1", "4111-", "411111111111 ", "+1 202 555 0 ", "a@", "a@b.cc-", "-"),
        *("-----BEGIN PRIVATE KEY-----", "eyJ", "eyJaaaaaaaaaaaa.eyJaaaaaaaaaa.", "GB82", "GB82 "),
        *("password=", 'password:"', "password='", "://a:", "patient id ", "ssn ", "12345678901 "),
        *("131052-308A ", "Bearer ", "token=abcdefgh1234567 ", "a", "\0", '"', '\\"', '"\\', "%41"),
        *("QUJDREVGR0hJSktM ", "[", '"\\"1', "é", "﹣１"),
    ):
        data = unit.encode()
        yield unit, (data * (MUCH // len(data) + 1))[:MUCH]
    rng = random.Random(1)
    yield "digits", bytes(rng.choices(b"0123456789 .-", k=MUCH))
    yield "upper", bytes(rng.choices(b"CFGHJKLMN0123456789 ", k=MUCH))


@pytest.mark.parametrize("detector", DETECTORS)
def test_the_work_on_hostile_text_is_bounded(detector: int) -> None:
    for name, text in hostile():
        result = find(DETECTORS[detector], text)
        assert result.candidates <= MOST_CANDIDATES, name
        assert len(result.spans) <= MOST_HITS, name
        assert result.complete or result.candidates >= MOST_HITS, name


def test_what_is_too_much_to_look_at_is_no_clean_text() -> None:
    result = find(DETECTORS[EMAIL], b"a@example.org " * (MOST_HITS + 1))
    assert len(result.spans) == MOST_HITS
    assert not result.complete
    result = find(DETECTORS[IBAN], b"GB82WEST12345698765433 " * (MOST_CANDIDATES + 1))
    assert result.spans == ()
    assert result
    assert not find(DETECTORS[IBAN], b"GB82WEST12345698765433 " * 100)


def test_a_hostile_message_is_read_in_bounded_space() -> None:
    for name, text in hostile():
        envelope = message_pb2.Envelope(message_type="a")
        envelope.payload.json.json = text[: MUCH // 8].decode(errors="replace")
        content = read(envelope)
        assert len(content.text) <= MUCH, name
        envelope.payload.protobuf.value = text[: MUCH // 8]
        assert len(read(envelope).text) <= MUCH, name


def test_numbers_of_science_are_no_data_of_people() -> None:
    rng = random.Random(2)
    texts = {
        "floats": json.dumps([rng.uniform(-100, 100) for _ in range(5_000)]),
        "integers": json.dumps([rng.randrange(10**9) for _ in range(5_000)]),
        "times": json.dumps([1_700_000_000_000 + rng.randrange(10**11) for _ in range(5_000)]),
        "digests": json.dumps([f"sha256:{rng.getrandbits(256):064x}" for _ in range(1_000)]),
        "bytes": base64.b64encode(rng.randbytes(50_000)).decode(),
        "atoms": "\n".join(
            f"ATOM  {i:5}  CA  ALA A{i % 9999:4}    {rng.uniform(-99, 99):8.3f}"
            f"{rng.uniform(-99, 99):8.3f}{rng.uniform(-99, 99):8.3f}  1.00{rng.uniform(1, 99):6.2f}"
            for i in range(1_000)
        ),
    }
    for name, text in texts.items():
        for detector in DETECTORS:
            assert found(detector, text) == [], (name, detector)


@pytest.mark.parametrize(
    ("pattern", "wrong"),
    [
        ("(", r"syntax: missing \): \("),
        (r"(a)\1", "RE2"),
        ("a(?=b)", "RE2"),
        ("a*", "empty"),
        ("(?:[a-z]{1,30}[0-9]{1,30}){30}", "large"),
    ],
)
def test_own_patterns_that_are_none(pattern: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        own_pattern(pattern)


def test_an_own_pattern_is_linear() -> None:
    finder = own_pattern("(a+)+$|PROJECT-[0-9]{4}")
    assert find(finder, b"a" * MUCH + b"!").candidates == 0
    assert find(finder, b"see PROJECT-1234.").spans == ((4, 16),)
