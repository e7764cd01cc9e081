"""The drawings of a validation report, as SVG that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.geometry.report.markup import Markup, element, join

__all__ = ["ramachandran_plots", "residue_bars", "stacked_bar"]

_PANEL = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 14, 8, 30
_LABELLED = 8
_LABEL_WIDTH, _LABEL_HEIGHT = 70, 12
_PER_ROW = 150
_BAR = 8
_BAR_HEIGHT = 80.0
_MOST_Z = 12.0


def ramachandran_plots(
    points: Sequence[pb.RamachandranPoint], regions: Mapping[str, Sequence[str]]
) -> Markup:
    """Returns a plot for each class of residue that there is.

    Regions have a row of letters for each psi and a letter for each phi from -180 on: f favored, a
    allowed, o outlier.
    """
    panels = []
    for name, background in regions.items():
        own = [point for point in points if point.residue_class == name]
        if own:
            panels.append(_panel(name, own, background))
    return element("div", *panels, class_="plots")


def _panel(name: str, points: Sequence[pb.RamachandranPoint], background: Sequence[str]) -> Markup:
    title = f"{name[0].upper()}{name[1:]}"
    worst = sorted(
        (point for point in points if point.region == "outlier"), key=lambda point: point.score
    )
    counts = f"{len(points)} residues, {len(worst)} outliers"
    drawing = element(
        "svg",
        element("title", f"{title}: {counts}"),
        _region(background, "fa", "allowed"),
        _region(background, "f", "favored"),
        *_grid(),
        *map(_point, sorted(points, key=lambda point: point.region == "outlier")),
        *map(_label, _apart(worst)),
        viewBox=f"-{_LEFT} -{_TOP} {_PANEL + _LEFT + _RIGHT} {_PANEL + _TOP + _BOTTOM}",
        role="img",
        aria_label=f"Ramachandran plot, {name}: {counts}",
    )
    return element(
        "figure",
        drawing,
        element("figcaption", element("b", title), f" · {counts}"),
        class_="panel",
    )


def _region(background: Sequence[str], letters: str, kind: str) -> Markup:
    size = _PANEL / len(background)
    path = "".join(
        f"M{start * size:g} {_PANEL - (row + 1) * size:g}h{length * size:g}v{size:g}h-{length * size:g}z"
        for row, line in enumerate(background)
        for start, length in _runs(line, letters)
    )
    return element("path", d=path, class_=f"region {kind}")


def _runs(line: str, letters: str) -> Iterator[tuple[int, int]]:
    at = 0
    for wanted, group in groupby(line, key=lambda letter: letter in letters):
        length = sum(1 for _ in group)
        if wanted:
            yield at, length
        at += length


def _grid() -> Iterator[Markup]:
    for degrees in (-180, -90, 0, 90, 180):
        x = _PANEL * (degrees + 180) / 360
        y = _PANEL - x
        yield element("line", x1=x, y1=0, x2=x, y2=_PANEL, class_="grid")
        yield element("line", x1=0, y1=y, x2=_PANEL, y2=y, class_="grid")
        yield element("text", f"{degrees}", x=x, y=_PANEL + 13, text_anchor="middle")
        yield element("text", f"{degrees}", x=-4, y=y + 4, text_anchor="end")
    yield element("text", "phi / °", x=_PANEL / 2, y=_PANEL + 26, text_anchor="middle")
    yield element("text", "psi / °", x=-_PANEL / 2, y=-24, text_anchor="middle", class_="upright")


def _point(point: pb.RamachandranPoint) -> Markup:
    x, y = _place(point)
    says = (
        f"{point.residue}: phi {point.phi:.0f}°, psi {point.psi:.0f}°, {point.region} "
        f"({point.score:.3g} %)"
    )
    radius = 4.0 if point.region == "outlier" else 2.6
    return element(
        "circle", element("title", says), cx=x, cy=y, r=radius, class_=f"point {point.region}"
    )


def _apart(points: Sequence[pb.RamachandranPoint]) -> list[pb.RamachandranPoint]:
    """The first of those whose labels do not lie on each other."""
    chosen: list[pb.RamachandranPoint] = []
    for point in points:
        x, y = _place(point)
        others = map(_place, chosen)
        if all(abs(x - at) > _LABEL_WIDTH or abs(y - up) > _LABEL_HEIGHT for at, up in others):
            chosen.append(point)
        if len(chosen) == _LABELLED:
            break
    return chosen


def _label(point: pb.RamachandranPoint) -> Markup:
    x, y = _place(point)
    right = x < _PANEL * 0.75
    return element(
        "text",
        point.residue,
        x=x + (6 if right else -6),
        y=y + 4,
        text_anchor="start" if right else "end",
        class_="name",
    )


def _place(point: pb.RamachandranPoint) -> tuple[float, float]:
    x = _PANEL * (point.phi + 180) / 360
    return round(x, 1), round(_PANEL - _PANEL * (point.psi + 180) / 360, 1)


def residue_bars(residues: Sequence[pb.ResidueDeviation]) -> Markup:
    """Returns rows of bars, one for each residue: how far its worst restraint is off."""
    rows = [residues[at : at + _PER_ROW] for at in range(0, len(residues), _PER_ROW)]
    return element("div", *map(_row, rows), class_="bars")


def _row(residues: Sequence[pb.ResidueDeviation]) -> Markup:
    span = f"{residues[0].residue} – {residues[-1].residue}"
    drawing = element(
        "svg",
        element("title", span),
        *(_bar(index, residue) for index, residue in enumerate(residues)),
        *(_level(z) for z in (4, 8)),
        viewBox=f"-24 0 {_PER_ROW * _BAR + 24} {_BAR_HEIGHT:g}",
        role="img",
        aria_label=f"Worst deviation of each residue, {span}",
    )
    return element("figure", drawing, element("figcaption", span))


def _bar(index: int, residue: pb.ResidueDeviation) -> Markup:
    z = residue.worst_z
    height = max(1.0, round(min(z, _MOST_Z) / _MOST_Z * _BAR_HEIGHT, 1))
    kind = "outlier" if z > 4 else "allowed" if z > 3 else "favored"
    says = f"{residue.residue}: {z:.1f} sigma ({residue.term})"
    return element(
        "rect",
        element("title", says),
        x=index * _BAR,
        y=_BAR_HEIGHT - height,
        width=_BAR - 1,
        height=height,
        class_=f"bar {kind}",
    )


def _level(z: int) -> Markup:
    y = round(_BAR_HEIGHT - z / _MOST_Z * _BAR_HEIGHT, 1)
    return join(
        element("line", x1=0, y1=y, x2=_PER_ROW * _BAR, y2=y, class_="level"),
        element("text", f"{z}σ", x=-3, y=y + 4, text_anchor="end"),
    )


def stacked_bar(shares: Sequence[pb.Share], kinds: Mapping[str, str]) -> Markup:
    """Returns the shares of one check as one bar; kinds are the styles of their names."""
    at = 0.0
    parts = []
    for share in shares:
        width = round(share.fraction * 100, 2)
        says = f"{share.name}: {share.count} ({100 * share.fraction:.1f} %)"
        parts.append(
            element(
                "rect",
                element("title", says),
                x=at,
                y=0,
                width=width,
                height=6,
                class_=f"bar {kinds[share.name]}",
            )
        )
        at += width
    return element(
        "svg",
        *parts,
        viewBox="0 0 100 6",
        preserveAspectRatio="none",
        role="img",
        aria_label=", ".join(f"{share.name} {100 * share.fraction:.1f} %" for share in shares),
        class_="stack",
    )
