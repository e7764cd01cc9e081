"""Kill anything: nothing that was acknowledged is lost."""

from __future__ import annotations

import pytest

from tests.chaos.storm import storm, tell


@pytest.mark.timeout(600)
async def test_nothing_is_lost_in_a_storm() -> None:
    outcome = await storm(20261125, messages=8000, tasks=2000, poison=20, kills=12)
    print(tell(outcome))
    outcome.check()
