"""Pictures of a run of a chain: Mermaid for documents, SVG for anything that shows pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from google.protobuf.timestamp_pb2 import Timestamp

from bxmesh.agent.v1.chain_run_pb2 import ChainRun, RunState, StepRun
from bxmesh.client.cli.chain_layout import HEIGHT, LAYER_GAP, WIDTH, Layout
from bxmesh.client.cli.values import age, counted
from bxmesh.registry.v1.chain_pb2 import ChainStep

__all__ = ["mermaid", "svg"]

# The colours of a box and of its border.
_COLOURS = {
    "pending": ("#f3f4f6", "#9ca3af"),
    "running": ("#dbeafe", "#2563eb"),
    "completed": ("#dcfce7", "#16a34a"),
    "failed": ("#fee2e2", "#dc2626"),
    "timed out": ("#ffedd5", "#ea580c"),
    "cancelled": ("#e5e7eb", "#4b5563"),
    "skipped": ("#faf5ff", "#a78bfa"),
}
_LONGEST_LINE = 34
_LINE, _MARGIN, _HEAD, _FOOT = 18, 24, 64, 32
_LEGEND = 112
_LEAST_WIDTH = 640


@dataclass(frozen=True)
class _Box:
    """A step as it is drawn."""

    step: ChainStep
    after: tuple[str, ...]
    state: str
    lines: tuple[str, ...]
    error: str


def mermaid(run: ChainRun) -> str:
    """Returns a run as a flowchart; edges into steps with a condition are dashed."""
    boxes = _boxes(run)
    numbers = {name: f"s{index}" for index, name in enumerate(boxes)}
    lines = ["flowchart TD"]
    for name, box in boxes.items():
        label = "<br/>".join(_mermaid_text(line) for line in box.lines)
        lines.append(f'  {numbers[name]}["{label}"]:::{_class(box.state)}')
    for name, box in boxes.items():
        arrow = "-.->" if box.step.condition else "-->"
        lines += [f"  {numbers[before]} {arrow} {numbers[name]}" for before in box.after]
    for state, (fill, border) in _COLOURS.items():
        lines.append(f"  classDef {_class(state)} fill:{fill},stroke:{border},color:#111827")
    return "\n".join(lines) + "\n"


def svg(run: ChainRun) -> str:
    """Returns a run as a picture that needs nothing from elsewhere."""
    boxes = _boxes(run)
    layout = Layout.of({name: box.after for name, box in boxes.items()})
    states = [state for state in _COLOURS if any(box.state == state for box in boxes.values())]
    inner = layout.width + 2 * _MARGIN
    width = max(inner, (len(states) + 2) * _LEGEND, _LEAST_WIDTH)
    bottom = _HEAD + layout.height + LAYER_GAP / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {bottom + _FOOT:g}"'
        f' width="{width:g}" height="{bottom + _FOOT:g}" role="img" font-family="sans-serif"'
        ' font-size="12" fill="#111827">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8"'
        ' markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="#6b7280"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        *_heading(run),
        f'<g transform="translate({(width - inner) / 2 + _MARGIN:g} {_HEAD})">',
        *_edges(boxes, layout),
        *(_drawn(box, *layout.places[name]) for name, box in boxes.items()),
        "</g>",
        *_legend(states, bottom),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _boxes(run: ChainRun) -> dict[str, _Box]:
    found = {step.step_id: step for step in run.steps}
    names = {step.step_id for step in run.chain.steps}
    boxes = {}
    for step in run.chain.steps:
        done = found.get(step.step_id, StepRun())
        state = _state(done.state)
        lines = [step.step_id, _call(step, done), _course(state, done)]
        if done.HasField("error"):
            lines.append(done.error.message)
        elif step.condition:
            lines.append(f"if {step.condition}")
        after = tuple(dict.fromkeys(before for before in step.after if before in names))
        boxes[step.step_id] = _Box(step, after, state, tuple(lines), done.error.message)
    return boxes


def _state(state: RunState.ValueType) -> str:
    name = RunState.Name(state) if state in RunState.values() else ""
    text = name.removeprefix("RUN_STATE_").replace("_", " ").lower()
    return text if text in _COLOURS else "pending"


def _call(step: ChainStep, done: StepRun) -> str:
    kind = step.WhichOneof("call") or "agent"
    name = getattr(step, kind)
    by = f" by {done.agent_id}" if done.agent_id and done.agent_id != name else ""
    return f"{kind} {name}{by}"


def _course(state: str, done: StepRun) -> str:
    parts = [state]
    if done.HasField("start_time") and done.HasField("end_time"):
        parts.append(_span(done.start_time, done.end_time))
    elif done.HasField("start_time"):
        parts.append(f"since {done.start_time.ToDatetime():%H:%M:%S} UTC")
    if done.attempts > 1:
        parts.append(counted(done.attempts, "attempt"))
    return " · ".join(parts)


def _span(start: Timestamp, end: Timestamp) -> str:
    return age(max(0.0, end.seconds - start.seconds + (end.nanos - start.nanos) / 1e9))


def _class(state: str) -> str:
    return state.replace(" ", "_")


def _shown(text: str, longest: int = _LONGEST_LINE) -> str:
    """Others' text, cut, with what cannot be seen as escapes: XML may not have it either."""
    visible = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in text[: longest + 1]
    )
    return visible if len(visible) <= longest else f"{visible[: longest - 1]}…"


def _mermaid_text(text: str) -> str:
    """Others' text as a label: whatever could mean something to Mermaid or HTML by its number."""
    return "".join(
        each if each.isalnum() or each in " ._-·…" else f"#{ord(each)};" for each in _shown(text)
    )


def _edges(boxes: dict[str, _Box], layout: Layout) -> Iterator[str]:
    bend = LAYER_GAP * 0.6
    for (_, name), places in layout.edges.items():
        dashes = ' stroke-dasharray="6 4"' if boxes[name].step.condition else ""
        (x, y), *others = places
        path = f"M{x:g} {y + HEIGHT:g}"
        for next_x, next_y in others:
            path += (
                f"C{x:g} {y + HEIGHT + bend:g} {next_x:g} {next_y - bend:g} {next_x:g} {next_y:g}"
            )
            x, y = next_x, next_y
            path += f"V{y + HEIGHT:g}" if (x, y) != others[-1] else ""
        yield (
            f'<path d="{path}" fill="none" stroke="#6b7280" stroke-width="1.5"{dashes}'
            ' marker-end="url(#head)"/>'
        )


def _drawn(box: _Box, middle: float, top: float) -> str:
    fill, border = _COLOURS[box.state]
    place = f'x="{middle - WIDTH / 2:g}" y="{top:g}" width="{WIDTH}" height="{HEIGHT}"'
    tip = "\n".join(escape(_shown(line, 400)) for line in (*box.lines, box.error) if line)
    rows = [
        f'<text x="12" y="{20 + index * _LINE}">{escape(_shown(line))}</text>'
        for index, line in enumerate(box.lines)
    ]
    rows[0] = rows[0].replace("<text", '<text font-weight="bold"', 1)
    inner = "".join(rows)
    # What is within the inner picture cannot leave it, however wide its letters are.
    return (
        f'<g><title>{tip}</title><rect {place} rx="8" fill="{fill}" stroke="{border}"'
        f' stroke-width="1.5"/><svg {place}>{inner}</svg></g>'
    )


def _heading(run: ChainRun) -> Iterator[str]:
    name = f"{run.definition_id} {run.definition_version}" if run.definition_id else "chain"
    facts = [f"run {run.run_id}", _state(run.state)]
    if run.HasField("create_time"):
        facts.append(f"{run.create_time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC")
        if run.HasField("end_time"):
            facts.append(_span(run.create_time, run.end_time))
    title = escape(_shown(name, 100))
    yield f"<title>{title}</title>"
    yield f'<text x="{_MARGIN}" y="26" font-size="16" font-weight="bold">{title}</text>'
    yield f'<text x="{_MARGIN}" y="46" fill="#4b5563">{escape(_shown(" · ".join(facts), 120))}</text>'


def _legend(states: list[str], top: float) -> Iterator[str]:
    x = float(_MARGIN)
    for state in states:
        fill, border = _COLOURS[state]
        yield (
            f'<rect x="{x:g}" y="{top:g}" width="14" height="14" rx="3" fill="{fill}"'
            f' stroke="{border}"/><text x="{x + 20:g}" y="{top + 11:g}">{state}</text>'
        )
        x += _LEGEND - 12
    yield (
        f'<path d="M{x:g} {top + 7:g}h28" stroke="#6b7280" stroke-width="1.5"'
        f' stroke-dasharray="6 4"/><text x="{x + 34:g}" y="{top + 11:g}">under a condition</text>'
    )
