"""Peptide bonds: trans, cis or twisted."""

from typing import Any

from mmtbx.validation import omegalyze

from bxmesh.server.geometry.engine.validation.naming import residue_name
from bxmesh.server.geometry.engine.validation.shares import shares
from bxmesh.server.geometry.engine.validation.types import Finding, Outlier

CHECK = "omega"
_NAMES = ("trans", "cis proline", "cis non-proline", "twisted")


def omega(hierarchy: Any) -> Finding:
    """Return the shares of the peptide bonds, and those that are twisted or cis before no proline.

    Twisted is more than 30° from both trans and cis. The score is the angle to trans, or to cis before
    proline where that is nearer, in degrees.
    """
    names, outliers = [], []
    for result in omegalyze.omegalyze(pdb_hierarchy=hierarchy, nontrans_only=False).results:
        proline = result.res_type == omegalyze.OMEGA_PRO
        name = _name(result.omega_type, proline=proline)
        names.append(name)
        if name in ("cis non-proline", "twisted"):
            outliers.append(_outlier(result, name, proline=proline))
    outliers.sort(key=lambda outlier: -outlier.score)
    return Finding(len(names), outliers, shares(CHECK, _NAMES, names))


def _name(kind: int, *, proline: bool) -> str:
    if kind == omegalyze.OMEGALYZE_TWISTED:
        return "twisted"
    if kind == omegalyze.OMEGALYZE_TRANS:
        return "trans"
    return "cis proline" if proline else "cis non-proline"


def _outlier(result: Any, name: str, *, proline: bool) -> Outlier:
    before = residue_name(
        result.chain_id,
        result.prev_resseq,
        result.prev_icode,
        result.prev_resname,
        result.prev_altloc,
    )
    after = residue_name(
        result.chain_id, result.resseq, result.icode, result.resname, result.altloc
    )
    size = abs(result.omega)
    ideal = 0.0 if proline and size < 90 else 180.0
    return Outlier(
        CHECK,
        (before, after),
        result.omega,
        ideal,
        abs(ideal - size),
        f"omega {result.omega:.0f}°: {name}",
    )
