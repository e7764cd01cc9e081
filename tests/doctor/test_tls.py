"""Certificates that are good, old, foreign or no certificates."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bxmesh.server.doctor import Finding, tls
from bxmesh.server.settings import Settings

CERTIFICATES = Path(__file__).parent / "certificates"


def check(folder: Path, certificate: str, key: str, **settings: Path) -> list[Finding]:
    for name in (certificate, key):
        if (CERTIFICATES / name).is_file():
            shutil.copy(CERTIFICATES / name, folder)
    if (folder / key).exists():
        (folder / key).chmod(0o600)
    return tls.check_tls(
        Settings(
            state_dir=folder, tls_certificate=folder / certificate, tls_key=folder / key, **settings
        )
    )


def test_good_certificate(tmp_path: Path) -> None:
    (finding,) = check(tmp_path, "lasting.pem", "key.pem")
    assert finding.level == "OK"
    assert "days" in finding.message


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        ("expired.pem", "key.pem", "certificate has expired"),
        ("lasting.pem", "other_key.pem", "mismatch"),
        ("lasting.pem", "locked_key.pem", "passphrase"),
        ("lasting.pem", "missing.pem", "No such file"),
        ("missing.pem", "key.pem", "No such file"),
        ("key.pem", "key.pem", "PEM"),
    ],
)
def test_bad_certificates(tmp_path: Path, certificate: str, key: str, words: str) -> None:
    (finding,) = check(tmp_path, certificate, key)
    assert finding.level == "FAIL"
    assert words in finding.message
    assert finding.remedy


def test_certificate_that_ends_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_SOON_DAYS", 1e6)
    (finding,) = check(tmp_path, "lasting.pem", "key.pem")
    assert (finding.level, finding.remedy) == ("WARN", "Renew the certificate.")


def test_key_that_others_can_read_and_a_bad_authority(tmp_path: Path) -> None:
    check(tmp_path, "lasting.pem", "key.pem")
    (tmp_path / "key.pem").chmod(0o644)
    settings = Settings(
        state_dir=tmp_path,
        tls_certificate=tmp_path / "lasting.pem",
        tls_key=tmp_path / "key.pem",
        tls_client_ca=tmp_path / "none.pem",
    )
    levels = {finding.check: finding.level for finding in tls.check_tls(settings)}
    assert levels == {"tls": "OK", "tls key": "WARN", "tls client ca": "FAIL"}


def test_half_a_configuration(tmp_path: Path) -> None:
    assert tls.check_tls(Settings(state_dir=tmp_path))[0].level == "OK"
    settings = Settings(state_dir=tmp_path, tls_certificate=tmp_path / "lasting.pem")
    assert tls.check_tls(settings)[0].level == "FAIL"
