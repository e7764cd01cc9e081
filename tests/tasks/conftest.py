"""What the task tests share: no task may fail unheard."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def nothing_fails_unheard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    unheard = [
        record.getMessage()
        for phase in ("setup", "call", "teardown")
        for record in caplog.get_records(phase)
        if record.name == "asyncio" and record.levelno >= logging.ERROR
    ]
    assert unheard == []
