"""Validation reports as pages: whole, without anything from elsewhere, and safe whatever a file says."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import pairwise

import pytest

from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.geometry.report import Subject, page
from bxmesh.server.geometry.report.markup import Markup, element, join

HOSTILE = "\"><script>alert('x')</script><img src=//evil onerror=a()>&amp;\x1b[31m\u202eRLO"
EMPTY = frozenset({"meta", "br"})
REGIONS = {"general": ("ffao",) * 4, "glycine": ("oooo",) * 4}


def subject(**changed: object) -> Subject:
    values = {
        "model_id": "sha256:00",
        "own_coordinates": True,
        "atoms": 66,
        "residues": 14,
        "space_group": "P 1 21 1",
        "d_min": None,
        "notices": (),
    }
    return Subject(**(values | changed))  # type: ignore[arg-type]


def report(name: str = "A 2 ASN") -> pb.ValidationReport:
    return pb.ValidationReport(
        deviations=[pb.Deviation(term="bond", count=59, rms=0.0145, rms_z=1.31, max=0.033)],
        shares=[
            pb.Share(check="ramachandran", name="favored", count=4, fraction=0.8),
            pb.Share(check="ramachandran", name="outlier", count=1, fraction=0.2),
            pb.Share(check="omega", name="cis proline", count=2, fraction=1.0),
        ],
        outliers=[
            pb.Outlier(
                check="bond", residues=[name, name], value=1.6, ideal=1.5, score=5, description=name
            )
        ],
        outlier_counts=[
            pb.OutlierCount(check="bond", count=3),
            pb.OutlierCount(check="close_contact", count=0),
        ],
        ramachandran=[
            pb.RamachandranPoint(
                residue=name,
                phi=-60,
                psi=140,
                residue_class="general",
                region=region,
                score=0.01,
            )
            for region in ("favored", "allowed", "outlier")
        ],
        residues=[pb.ResidueDeviation(residue=name, worst_z=z, term="bond") for z in (0.0, 3, 99)],
        unavailable=[name],
    )


class Page(HTMLParser):
    """Reads a page strictly: every element is closed where it must be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [text for name, text in self.text if name == tag]


def test_a_page_loads_and_runs_nothing() -> None:
    read = Page(page(subject(), report(), REGIONS))
    names = {tag for tag, _ in read.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "form", "a", "use"}
    for _, attributes in read.tags:
        assert not {"src", "href", "xlink:href", "action", "style"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    (style,) = read.texts("style")
    assert "url(" not in style
    assert "@import" not in style
    assert any(
        attributes.get("http-equiv") == "Content-Security-Policy"
        and (attributes["content"] or "").startswith("default-src 'none'")
        for attributes in read.all("meta")
    )


def test_what_is_found_is_there() -> None:
    read = Page(page(subject(own_coordinates=False, d_min=1.8), report(), REGIONS))
    words = " ".join(text for _, text in read.text)
    for expected in (
        "66 atoms",
        "P 1 21 1",
        "1.80 Å",
        "coordinates that were given",
        "0.0145 Å",
        "80.0 %",
        "cis proline 2 (100.0 %)",
        "3 in all: bond 3. The worst 1 are listed.",
    ):
        assert expected in words
    titles = read.texts("title")
    assert "A 2 ASN: phi -60°, psi 140°, outlier (0.01 %)" in titles
    assert "A 2 ASN: 99.0 sigma (bond)" in titles
    # One plot for the class that there is, and a point for each conformation.
    assert len([figure for figure in read.all("figure") if figure.get("class") == "panel"]) == 1
    assert len(read.all("circle")) == 3


def test_a_page_is_for_everybody() -> None:
    text = page(subject(), report(), REGIONS)
    read = Page(text)
    assert read.all("html") == [{"lang": "en"}]
    assert "prefers-color-scheme: dark" in text
    for drawing in read.all("svg"):
        assert drawing["role"] == "img"
        assert drawing["aria-label"]
    assert all(cell["scope"] == "col" for cell in read.all("th"))
    levels = [int(tag[1]) for tag, _ in read.tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_hostile_names_stay_names() -> None:
    text = page(
        subject(space_group=HOSTILE, notices=(HOSTILE,), model_id=HOSTILE),
        report(HOSTILE),
        REGIONS,
    )
    read = Page(text)
    ordinary = Page(page(subject(notices=("one",)), report(), REGIONS))
    # The same elements with the same attributes' names, whatever the names are.
    assert [(tag, list(attributes)) for tag, attributes in read.tags] == [
        (tag, list(attributes)) for tag, attributes in ordinary.tags
    ]
    assert "\x1b" not in text
    assert "\u202e" not in text
    harmless = HOSTILE.replace("\x1b", "\ufffd").replace("\u202e", "\ufffd")
    assert any(harmless in title for title in read.texts("title"))
    assert harmless in read.texts("li")


@pytest.mark.parametrize("d_min", [None, 2.0])
def test_an_empty_report_is_a_page(d_min: float | None) -> None:
    read = Page(page(subject(space_group="", d_min=d_min), pb.ValidationReport(), REGIONS))
    assert "There are none." in read.texts("p")
    assert not read.all("svg")


def test_agreement_with_the_data_is_shown() -> None:
    found = report()
    found.xray.r_work = 0.1843
    assert "0.1843" in Page(page(subject(), found, REGIONS)).texts("b")
    found.xray.r_free = 0.2131
    assert "0.2131" in Page(page(subject(), found, REGIONS)).texts("b")


def test_markup_escapes_all_but_itself() -> None:
    assert element("p", "<b>", element("b", "&"), title='"') == (
        '<p title="&quot;">&lt;b&gt;<b>&amp;</b></p>'
    )
    assert join("<", Markup("<br/>")) == "&lt;<br/>"
    assert element("rect", x=1.5, class_="bar") == '<rect x="1.5" class="bar"/>'
