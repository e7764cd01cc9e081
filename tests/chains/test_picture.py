"""Pictures of runs: what they show, and that names cannot break them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bxmesh.agent.v1.chain_run_pb2 import ChainRun, RunState
from bxmesh.client.cli.chain_layout import HEIGHT, WIDTH, Layout
from bxmesh.client.cli.chain_picture import mermaid, svg
from bxmesh.registry.v1.chain_pb2 import ChainStep

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    '"];click s0 "javascript:alert(1)"',
    "</text><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a\nb\r\n  s9 --> s0",
    "%%{init: {}}%%",
    "]]>&amp;&#x41;#quot;#35;",
    "\x00\x01\x1b[31m\u202e\ufffe",
    "`**bold**` $$x$$",
    "x" * 5000,
    "字" * 40,
    "end",
    "",
]


def run_of(*steps: ChainStep, **states: RunState.ValueType) -> ChainRun:
    run = ChainRun(run_id="run-1", definition_id="nightly", definition_version=3)
    run.chain.steps.extend(steps)
    for name, state in states.items():
        run.steps.add(step_id=name, state=state)
    return run


def drawn(run: ChainRun) -> tuple[ElementTree.Element, list[str]]:
    root = ElementTree.fromstring(svg(run))
    return root, [text.text or "" for text in root.iter(f"{SVG}text")]


def diamond() -> ChainRun:
    run = run_of(
        ChainStep(step_id="a", agent="loader"),
        ChainStep(step_id="b", function="tools.clean@1.0.0", after=["a"]),
        ChainStep(step_id="c", capability="x.y", after=["a"], condition="input.n > 3"),
        ChainStep(step_id="d", agent="z", after=["b", "c", "a"]),
        a=RunState.RUN_STATE_COMPLETED,
        b=RunState.RUN_STATE_FAILED,
        c=RunState.RUN_STATE_RUNNING,
    )
    run.create_time.FromJsonString("2026-01-31T12:00:00Z")
    run.steps[0].start_time.FromJsonString("2026-01-31T12:00:00Z")
    run.steps[0].end_time.FromJsonString("2026-01-31T12:00:01.500Z")
    run.steps[1].error.message = "it broke"
    run.steps[1].attempts = 3
    run.steps[2].start_time.FromJsonString("2026-01-31T12:00:02Z")
    return run


def test_mermaid() -> None:
    lines = mermaid(diamond()).splitlines()
    assert lines[0] == "flowchart TD"
    assert '  s0["a<br/>agent loader<br/>completed · 1.5 s"]:::completed' in lines
    assert any("failed · 3 attempts<br/>it broke" in line for line in lines)
    assert any("since 12#58;00#58;02 UTC" in line for line in lines)
    assert any("if input.n #62; 3" in line for line in lines)
    edges = [line.strip() for line in lines if re.search(r"--?>|-\.->", line)]
    assert edges == ["s0 --> s1", "s0 -.-> s2", "s1 --> s3", "s2 --> s3", "s0 --> s3"]


def test_svg() -> None:
    root, texts = drawn(diamond())
    for text in ("nightly 3", "completed · 1.5 s", "failed · 3 attempts", "it broke", "pending"):
        assert text in texts
    # One for each edge into a step with a condition, and the legend.
    assert len([e for e in root.iter(f"{SVG}path") if e.get("stroke-dasharray")]) == 2
    assert len([e for e in root.iter(f"{SVG}path") if e.get("marker-end")]) == 5


def test_a_run_without_anything() -> None:
    assert mermaid(ChainRun()).startswith("flowchart TD\n")
    drawn(ChainRun())


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_names_cannot_break_pictures(text: str) -> None:
    run = run_of(
        ChainStep(step_id=text, agent=text, condition=text),
        ChainStep(step_id="last", agent="a", after=[text, "nowhere", text]),
    )
    run.run_id = run.definition_id = text
    run.steps.add(step_id="last", state=RunState.RUN_STATE_FAILED, agent_id=text)
    run.steps[0].error.message = text
    check_svg(run)
    check_mermaid(run)


def check_svg(run: ChainRun) -> None:
    root, texts = drawn(run)
    names = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert names <= {"svg", "defs", "marker", "path", "rect", "title", "text", "g"}
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not name.startswith("on") and "href" not in name
            assert "url(" not in value or value == "url(#head)"
    assert max(map(len, texts)) <= 120


def check_mermaid(run: ChainRun) -> None:
    label = r"[\w ._·…\-]|#\d+;|<br/>"
    lines = mermaid(run).splitlines()
    for line in lines[1:]:
        assert re.fullmatch(
            rf'  s\d+\["(?:{label})*"\]:::\w+|  s\d+ -\.?-> s\d+|  classDef [\w:#,\- ]+', line
        )


@given(st.text(max_size=50))
def test_no_text_breaks_pictures(text: str) -> None:
    run = run_of(ChainStep(step_id=text, agent=text, condition=text))
    check_svg(run)
    check_mermaid(run)


def places_of(after: dict[str, Sequence[str]]) -> Layout:
    layout = Layout.of(after)
    boxes = list(layout.places.values())
    for index, (x, y) in enumerate(boxes):
        assert WIDTH / 2 <= x <= layout.width - WIDTH / 2
        assert 0 <= y <= layout.height - HEIGHT
        assert all(y != other_y or abs(x - other_x) >= WIDTH for other_x, other_y in boxes[:index])
    return layout


@given(st.integers(1, 12), st.data())
def test_boxes_are_below_what_they_wait_for_and_do_not_overlap(
    count: int, data: st.DataObject
) -> None:
    after = {
        f"s{n}": [f"s{m}" for m in data.draw(st.sets(st.integers(0, n - 1)))] if n else []
        for n in range(count)
    }
    layout = places_of(after)
    for name, before in after.items():
        for each in before:
            assert layout.places[each][1] < layout.places[name][1]
            way = layout.edges[each, name]
            assert (way[0], way[-1]) == (layout.places[each], layout.places[name])


def test_large_and_circular_graphs_are_drawn() -> None:
    all_after_all = {f"s{n}": [f"s{m}" for m in range(n)] for n in range(128)}
    assert places_of(all_after_all).height > 127 * HEIGHT
    places_of({"a": ["b"], "b": ["a"], "c": ["c", "a"]})
    places_of({f"s{n}": [] for n in range(128)})
