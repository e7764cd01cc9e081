"""A validation report as one page that loads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from bxmesh.client.validation import Validation, compare_figures
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.geometry.report.markup import Markup, element, join
from bxmesh.server.geometry.report.plots import ramachandran_plots, residue_bars, stacked_bar
from bxmesh.server.geometry.report.style import STYLE

__all__ = ["Subject", "page"]

_UNITS = {"bond": " Å", "angle": "°", "dihedral": "°", "chirality": " Å³", "planarity": " Å"}
_NAMES = {
    "ramachandran": "Ramachandran",
    "omega": "peptide bonds (omega)",
    "cbeta": "C-beta deviation",
    "close_contact": "close contacts",
}
_KINDS = {
    "favored": "favored",
    "trans": "favored",
    "allowed": "allowed",
    "cis proline": "allowed",
    "outlier": "outlier",
    "cis non-proline": "outlier",
    "twisted": "outlier",
}


@dataclass(frozen=True)
class Subject:
    """What a report is about."""

    model_id: str
    own_coordinates: bool
    """Whether the coordinates are those of the model's file."""
    atoms: int
    residues: int
    space_group: str
    """Empty without one."""
    d_min: float | None
    """The high resolution limit of the data in Å."""
    notices: Sequence[str]


def page(
    subject: Subject,
    report: pb.ValidationReport,
    regions: Mapping[str, Sequence[str]],
    before: Mapping[str, float] | None = None,
) -> str:
    """Returns the HTML; `regions` are those of the Ramachandran plots, see `ramachandran_plots`.

    `before` are figures of an earlier validation by name, which it compares with.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'",
        ),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", "Validation report"),
        Markup(f"<style>{STYLE}</style>"),
    )
    body = element(
        "body",
        element("main", _header(subject), *_sections(subject, report, regions, before or {})),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _header(subject: Subject) -> Markup:
    facts = [f"{subject.atoms} atoms", f"{subject.residues} residues"]
    if subject.space_group:
        facts.append(subject.space_group)
    if subject.d_min is not None:
        facts.append(f"data to {subject.d_min:.2f} Å")
    if not subject.own_coordinates:
        facts.append("at coordinates that were given, not those of its file")
    return element(
        "header",
        element("h1", "Validation report"),
        element("p", " · ".join(facts), element("br"), element("code", subject.model_id)),
    )


def _sections(
    subject: Subject,
    report: pb.ValidationReport,
    regions: Mapping[str, Sequence[str]],
    before: Mapping[str, float],
) -> Iterable[Markup]:
    yield _cards(report)
    if before:
        yield _section("Before and after", _comparison(before, report))
    if report.deviations:
        yield _section("Restraints", _deviations(report))
    if report.shares:
        yield _section("Classes", _shares(report))
    if report.ramachandran:
        yield _section(
            "Ramachandran plots",
            element(
                "p",
                "Strong colour: favored; faint: allowed, in the contours of the Top8000 set. "
                "Point at a residue to read its name.",
                class_="soft",
            ),
            ramachandran_plots(report.ramachandran, regions),
        )
    if report.residues:
        yield _section(
            "The worst restraint of each residue",
            element("p", "In sigmas, cut off at 12. Beyond 4 it is an outlier.", class_="soft"),
            residue_bars(report.residues),
        )
    yield _section("Outliers", *_outliers(report))
    notes = [*report.unavailable, *subject.notices]
    if notes:
        yield _section(
            "What was not checked, and notices",
            element("ul", *(element("li", note) for note in notes)),
        )


def _section(title: str, *content: str) -> Markup:
    return element("section", element("h2", title), *content)


def _cards(report: pb.ValidationReport) -> Markup:
    cards = []
    for deviation in report.deviations:
        if deviation.term in ("bond", "angle"):
            z = deviation.rms_z
            kind = "good" if z <= 1.5 else "fair" if z <= 3 else "bad"
            cards.append(_card(f"{deviation.term}s, rms Z", f"{z:.2f}", kind))
    for share in report.shares:
        if share.check == "ramachandran" and share.name in ("favored", "outlier"):
            percent = 100 * share.fraction
            favored = share.name == "favored"
            good, fair = (
                (percent >= 98, percent >= 90) if favored else (percent <= 0.2, percent <= 2)
            )
            kind = "good" if good else "fair" if fair else "bad"
            cards.append(_card(f"Ramachandran {share.name}", f"{percent:.1f} %", kind))
    for count in report.outlier_counts:
        if count.check in ("close_contact", "cbeta"):
            kind = "" if count.count else "good"
            name = "close contacts" if count.check == "close_contact" else "C-beta outliers"
            cards.append(_card(name, f"{count.count}", kind))
    if report.HasField("xray"):
        xray = report.xray
        cards.append(_card("R-work", f"{xray.r_work:.4f}", ""))
        if xray.HasField("r_free"):
            cards.append(_card("R-free", f"{xray.r_free:.4f}", ""))
    return element("ul", *cards, class_="cards")


def _card(name: str, value: str, kind: str) -> Markup:
    return element("li", name, element("b", value, class_=kind))


def _comparison(before: Mapping[str, float], report: pb.ValidationReport) -> Markup:
    after = Validation.from_message(pb.ValidateModelResponse(report=report)).figures
    return _table(
        "Before and after",
        ("figure", "before", "after", "change"),
        (
            (each.name, *(_figure(value) for value in (each.before, each.after, each.change)))
            for each in compare_figures(dict(before), after)
        ),
        numbers=range(1, 4),
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _deviations(report: pb.ValidationReport) -> Markup:
    counts = {count.check: count.count for count in report.outlier_counts}
    return _table(
        "Restraints",
        ("term", "restraints", "rms", "rms Z", "largest", "outliers (> 4 sigma)"),
        (
            (
                each.term,
                f"{each.count}",
                f"{each.rms:.4f}{_UNITS[each.term]}",
                f"{each.rms_z:.2f}",
                f"{each.max:.3f}{_UNITS[each.term]}",
                f"{counts[each.term]}",
            )
            for each in report.deviations
        ),
        numbers=range(1, 6),
    )


def _shares(report: pb.ValidationReport) -> Markup:
    rows = []
    for check, group in groupby(report.shares, key=lambda share: share.check):
        shares = list(group)
        words = ", ".join(
            f"{share.name} {share.count} ({100 * share.fraction:.1f} %)"
            for share in shares
            if share.count
        )
        rows.append((_NAMES.get(check, check), words, stacked_bar(shares, _KINDS)))
    return _table("Classes", ("check", "classes", "shares"), rows)


def _outliers(report: pb.ValidationReport) -> Iterable[Markup]:
    total = sum(count.count for count in report.outlier_counts)
    if not total:
        yield element("p", "There are none.")
        return
    counts = ", ".join(
        f"{_NAMES.get(count.check, count.check)} {count.count}"
        for count in report.outlier_counts
        if count.count
    )
    listed = (
        f" The worst {len(report.outliers)} are listed." if len(report.outliers) < total else ""
    )
    yield element("p", f"{total} in all: {counts}.{listed}", class_="soft")
    yield _table(
        "Outliers",
        ("check", "residues", "value", "expected", "score", "what it is"),
        (
            (
                _NAMES.get(each.check, each.check),
                ", ".join(each.residues),
                f"{each.value:.3f}",
                f"{each.ideal:.3f}",
                f"{each.score:.3g}",
                each.description,
            )
            for each in report.outliers
        ),
        numbers=(2, 3, 4),
    )
    yield element(
        "p",
        "Scores: restraints, deviations over sigma; Ramachandran and rotamers, a percentage, less is worse; "
        "peptide bonds, degrees from planarity; C-beta, Å; close contacts, the overlap in Å.",
        class_="soft",
    )


def _table(
    name: str, header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()
) -> Markup:
    kinds = ["number" if column in numbers else "" for column in range(len(header))]
    head = element(
        "tr",
        *(
            element("th", name, scope="col", class_=kind)
            for name, kind in zip(header, kinds, strict=True)
        ),
    )
    body = join(
        *(
            element(
                "tr",
                *(element("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)),
            )
            for row in rows
        )
    )
    table = element("table", element("thead", head), element("tbody", body))
    # Focusable, so that it scrolls without a mouse.
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=name)
