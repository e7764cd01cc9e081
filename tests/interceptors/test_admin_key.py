"""The admin key and its file."""

from __future__ import annotations

import asyncio
import re
import stat
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from bxmesh.server.security.admin_key import FILE_NAME, AdminKeyAuthenticator, load_or_create


def test_key_is_created_once_and_kept(tmp_path: Path) -> None:
    state = tmp_path / "a" / "state"
    key = load_or_create(state)
    assert re.fullmatch(r"bx_admin_[A-Za-z0-9_-]{43}", key)
    assert load_or_create(state) == key
    assert [path.name for path in state.iterdir()] == [FILE_NAME]
    assert stat.S_IMODE((state / FILE_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_processes_at_once_agree_on_one_key(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        list(pool.map(abs, range(4)))
        for number in range(10):
            state = tmp_path / str(number)
            assert len(set(pool.map(load_or_create, [state] * 8))) == 1
            assert [path.name for path in state.iterdir()] == [FILE_NAME]


def test_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_or_create(tmp_path)
    (tmp_path / FILE_NAME).chmod(0o640)
    with pytest.raises(PermissionError, match="chmod 600"):
        load_or_create(tmp_path)


@pytest.mark.parametrize("content", ["", "bx_admin_short\n", "x" * 10_000])
def test_file_without_a_key_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / FILE_NAME
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="holds no admin key"):
        load_or_create(tmp_path)
    assert path.read_text() == content


def test_authenticator_knows_its_key_and_holds_only_a_hash(tmp_path: Path) -> None:
    key = load_or_create(tmp_path)
    authenticator = AdminKeyAuthenticator(key)
    identity = asyncio.run(authenticator.authenticate(key))
    assert identity is not None
    assert identity.kind == "admin"
    for wrong in ("", key[:-1], key + "a", key.upper(), "\udc80"):
        assert asyncio.run(authenticator.authenticate(wrong)) is None
    assert key not in repr(authenticator) + repr(vars(authenticator)) + repr(identity)
