"""Side-chain rotamers, where the installation has the contours that they are judged by."""

from typing import Any

from mmtbx.rotamer import rotamer_eval
from mmtbx.validation import rotalyze

from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.validation.naming import residue_name
from bxmesh.server.geometry.engine.validation.shares import shares
from bxmesh.server.geometry.engine.validation.types import Finding, Outlier

CHECK = "rotamer"
_NAMES = {"Favored": "favored", "Allowed": "allowed", "OUTLIER": "outlier"}


def rotamers(hierarchy: Any) -> Finding:
    """Return the shares and the outliers; raises EngineError NO_CONTOURS.

    The score is the percentage of well-determined side chains of its kind that are less usual.
    """
    if rotamer_eval.find_rotarama_data_dir(optional=True) is None:
        raise EngineError(
            "NO_CONTOURS",
            "their contours (rotarama_data of Phenix's chem_data) are not installed here",
            field="options",
        )
    results = rotalyze.rotalyze(pdb_hierarchy=hierarchy, outliers_only=False, quiet=True).results
    names = [_NAMES[result.evaluation] for result in results]
    outliers = [_outlier(result) for result in results if result.is_outlier()]
    outliers.sort(key=lambda outlier: outlier.score)
    return Finding(len(names), outliers, shares(CHECK, tuple(_NAMES.values()), names))


def _outlier(result: Any) -> Outlier:
    residue = residue_name(
        result.chain_id, result.resseq, result.icode, result.resname, result.altloc
    )
    angles = ", ".join(f"{chi:.0f}°" for chi in result.chi_angles if chi is not None)
    return Outlier(
        CHECK, (residue,), result.score, 0.0, result.score, f"rotamer outlier: chi {angles}"
    )
