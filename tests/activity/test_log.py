"""The writer of the activity log: days, retention, crashes, and disks and queues that are full."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from bxmesh.server import telemetry
from bxmesh.server.activity import files
from bxmesh.server.activity.events import AgentEvent, ErrorEvent, day_of, known_reason
from bxmesh.server.activity.files import read_lines
from bxmesh.server.activity.log import ActivityLog

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
DAY = 86400.0


def agent(name: str = "bob", at: float | None = None) -> AgentEvent:
    return AgentEvent(event="connected", agent_id=name, **({} if at is None else {"time": at}))


def names(path: Path) -> list[str]:
    return [line.get("agent_id", f"{line.get('lines')} missing") for line in read_lines(path)]


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def writing(directory: Path, **options: Any) -> Iterator[ActivityLog]:
    log = ActivityLog(directory, **options)
    log.start()
    try:
        yield log
    finally:
        log.stop()


def today(directory: Path, kind: str = "agents") -> Path:
    return directory / f"{kind}-{day_of(time.time())}.jsonl"


def test_lines_are_json_with_what_is_known(tmp_path: Path) -> None:
    with writing(tmp_path, clock=lambda: NOON) as log:
        log.add(agent("bob\nmallory", NOON))
    (path,) = tmp_path.glob("*.jsonl")
    assert path.name == "agents-2026-01-31.jsonl"
    assert path.read_bytes() == (
        b'{"time":"2026-01-31T12:00:00.000000Z","event":"connected","agent_id":"bob\\nmallory"}\n'
    )
    assert path.stat().st_mode & 0o777 == 0o600


def test_long_texts_are_cut_and_odd_reasons_hidden() -> None:
    line = agent("x" * 10_000).line()
    assert len(line) < 300
    assert json.loads(line)["agent_id"].endswith("x…")
    assert known_reason("NO_HANDLER") == "NO_HANDLER"
    for odd in ("", "password: 1234", "A" * 65, "NO_HANDLER\n"):
        assert known_reason(odd) == "OTHER"


def test_lines_are_there_about_a_second_later(tmp_path: Path) -> None:
    with writing(tmp_path) as log:
        log.add(agent())
        until(lambda: today(tmp_path).exists() and names(today(tmp_path)) == ["bob"])
        assert log.waiting == 0


def test_each_day_has_its_file(tmp_path: Path) -> None:
    clock = NOON
    with writing(tmp_path, clock=lambda: clock) as log:
        midnight = NOON + DAY / 2
        for at in (midnight - 0.001, midnight, midnight + DAY):
            log.add(agent(day_of(at), at))
        until(lambda: len(list(tmp_path.glob("agents-*"))) == 3)
        clock += DAY
        log.add(agent("late", midnight - 0.001))
    assert names(tmp_path / "agents-2026-01-31.jsonl") == ["2026-01-31", "late"]
    assert names(tmp_path / "agents-2026-02-01.jsonl") == ["2026-02-01"]
    assert names(tmp_path / "agents-2026-02-02.jsonl") == ["2026-02-02"]


def test_old_files_go_and_others_stay(tmp_path: Path) -> None:
    def name(days: int, suffix: str = "") -> str:
        return f"errors-{day_of(NOON - days * DAY)}{suffix}.jsonl"

    kept = [name(30), name(0), "errors-2020-01-01.txt", "mine-2020-01-01.jsonl", "notes"]
    old = [name(31), name(31, ".2"), name(4000)]
    for each in (*kept, *old):
        (tmp_path / each).write_text("{}\n")
    clock = NOON
    with writing(tmp_path, days=30, clock=lambda: clock):
        until(lambda: not any((tmp_path / each).exists() for each in old))
        assert all((tmp_path / each).exists() for each in kept)
        clock += DAY
        until(lambda: not (tmp_path / name(30)).exists())


def test_a_file_has_a_largest_size_and_the_next_day_says_what_is_missing(tmp_path: Path) -> None:
    clock = NOON
    with writing(tmp_path, clock=lambda: clock, most_bytes=4096) as log:
        for number in range(100):
            log.add(agent(f"agent-{number}", NOON))
        until(lambda: log.dropped["size"])
        first = tmp_path / "agents-2026-01-31.jsonl"
        count = len(names(first))
        assert 0 < count < 100
        assert first.stat().st_size <= 4096
        clock += DAY
        log.add(agent("next", clock))
    assert names(tmp_path / "agents-2026-02-01.jsonl") == [f"{100 - count} missing", "next"]
    assert log.dropped == {"size": 100 - count}


def test_processes_of_one_directory_have_their_own_files(tmp_path: Path) -> None:
    with writing(tmp_path) as first, writing(tmp_path) as second:
        first.add(agent("first"))
        second.add(agent("second"))
    with writing(tmp_path) as third:
        third.add(agent("third"))
    assert names(today(tmp_path)) == ["first", "third"]
    assert names(today(tmp_path).with_suffix(".2.jsonl")) == ["second"]


def test_a_torn_line_stays_alone_and_is_skipped(tmp_path: Path) -> None:
    today(tmp_path).write_bytes(agent("whole").line() + agent("torn").line()[:20])
    assert names(today(tmp_path)) == ["whole"]
    with writing(tmp_path) as log:
        log.add(agent("next"))
    assert names(today(tmp_path)) == ["whole", "next"]


_CRASH = """
import os, sys
from pathlib import Path
from bxmesh.server.activity.events import AgentEvent
from bxmesh.server.activity.log import ActivityLog
log = ActivityLog(Path(sys.argv[1]))
log.start()
for number in range(20_000):
    log.add(AgentEvent(event="connected", agent_id=f"agent-{number}"))
print("added", flush=True)
sys.stdin.read()
"""


def test_a_crash_leaves_at_most_one_torn_line(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _CRASH, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"added\n"
        until(lambda: any(path.stat().st_size for path in tmp_path.glob("*.jsonl")))
        process.kill()
    (path,) = tmp_path.glob("*.jsonl")
    found = names(path)
    assert found == [f"agent-{number}" for number in range(len(found))]
    assert len(path.read_bytes().splitlines()) - len(found) <= 1


def test_a_full_disk_drops_lines_and_says_so_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    today(tmp_path).symlink_to("/dev/full")
    with writing(tmp_path) as log:
        log.add(agent("lost"))
        log.add(agent("lost too"))
        until(lambda: log.dropped["disk"] == 2)
        log.add(ErrorEvent(event="fault", code="INTERNAL", reason="INTERNAL"))
        until(lambda: today(tmp_path, "errors").exists())
        today(tmp_path).unlink()
        # It need not wait for another line of that kind.
        until(lambda: today(tmp_path).exists())
        log.add(agent("found"))
    assert names(today(tmp_path)) == ["2 missing", "found"]
    said = [record.getMessage() for record in caplog.records]
    assert sum("is not logged" in each and "No space left" in each for each in said) >= 1
    assert "activity is logged again" in said


_LIMITED = """
import resource, sys
from pathlib import Path
from bxmesh.server.activity.events import AgentEvent
from bxmesh.server.activity.log import ActivityLog
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
log = ActivityLog(Path(sys.argv[1]))
log.start()
for number in range(100):
    log.add(AgentEvent(event="connected", agent_id=f"agent-{number}"))
while not log.dropped:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
log.add(AgentEvent(event="connected", agent_id="last"))
log.stop()
print(log.dropped["disk"])
"""


def test_a_write_that_the_disk_cuts_short_leaves_whole_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, tmp_path], capture_output=True, text=True, check=True
    )
    dropped = int(done.stdout)
    found = names(today(tmp_path))
    assert 0 < dropped < 100
    assert found == [
        *(f"agent-{number}" for number in range(100 - dropped)),
        f"{dropped} missing",
        "last",
    ]
    assert today(tmp_path).read_bytes().count(b"\n") == len(found)


def test_a_full_queue_drops_lines_and_never_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    write = os.write

    def hang(file: int, data: Any) -> int:
        hangs.set()
        goes_on.wait(20)
        return write(file, data)

    monkeypatch.setattr(files.os, "write", hang)
    with writing(tmp_path, most_waiting=10) as log:
        log.add(agent("first"))
        assert hangs.wait(20)
        # The disk hangs; whoever adds does not.
        for number in range(1000):
            log.add(agent(f"agent-{number}"))
        assert log.dropped == {"queue": 990}
        assert log.waiting == 10
        goes_on.set()
        until(lambda: log.waiting == 0)
        log.add(agent("last"))
    assert names(today(tmp_path)) == [
        "first",
        "990 missing",
        *(f"agent-{number}" for number in range(10)),
        "last",
    ]


def test_a_directory_that_vanishes_comes_back(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    with writing(directory) as log:
        log.add(agent("gone"))
        until(lambda: today(directory).exists())
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        log.add(agent("back"))
        until(lambda: today(directory).exists() and names(today(directory)) == ["back"])


def test_a_directory_of_no_use_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = ActivityLog(tmp_path / "file" / "log")
    with pytest.raises(OSError, match="file"):
        log.start()


def test_without_space_at_the_start_it_begins_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True
    opened = os.open

    def refuse(*arguments: Any, **options: Any) -> int:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(*arguments, **options)

    monkeypatch.setattr(files.os, "open", refuse)
    with writing(tmp_path) as log:
        log.add(agent("lost"))
        until(lambda: log.dropped["disk"] == 1)
        full = False
        log.add(agent("found"))
        until(lambda: today(tmp_path).exists() and "found" in names(today(tmp_path)))


def test_dropped_lines_are_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(telemetry, "meter", lambda: provider.get_meter("test"))
    log = ActivityLog(tmp_path, most_waiting=0)
    log.add(agent())
    log.add(agent())
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert metric.name == "bxmesh.activity.dropped"
    (point,) = metric.data.data_points
    assert (point.value, dict(point.attributes)) == (2, {"bxmesh.activity.cause": "queue"})
    provider.shutdown()
