"""Side-chain rotamers, where the installation has the contours that they are judged by."""

from typing import Any

from mmtbx.rotamer.rotamer_eval import find_rotarama_data_dir
from mmtbx.validation import rotalyze

from bxmesh.server.geometry.engine.validation.naming import residue_name
from bxmesh.server.geometry.engine.validation.shares import shares
from bxmesh.server.geometry.engine.validation.types import Outlier, Share

CHECK = "rotamer"
_NAMES = {"Favored": "favored", "Allowed": "allowed", "OUTLIER": "outlier"}


def has_contours() -> bool:
    """Return whether the contours are there: rotarama_data of Phenix's chem_data."""
    return find_rotarama_data_dir(optional=True) is not None


def rotamers(hierarchy: Any) -> tuple[tuple[Share, ...], list[Outlier]]:
    """Return the shares and the outliers. The score is a percentage, less is worse."""
    results = rotalyze.rotalyze(pdb_hierarchy=hierarchy, outliers_only=False, quiet=True).results
    names = [_NAMES[result.evaluation] for result in results]
    outliers = [_outlier(result) for result in results if result.is_outlier()]
    outliers.sort(key=lambda outlier: outlier.score)
    return shares(CHECK, tuple(_NAMES.values()), names), outliers


def _outlier(result: Any) -> Outlier:
    residue = residue_name(
        result.chain_id, result.resseq, result.icode, result.resname, result.altloc
    )
    angles = ", ".join(f"{chi:.0f}°" for chi in result.chi_angles if chi is not None)
    return Outlier(
        CHECK, (residue,), result.score, 0.0, result.score, f"rotamer outlier: chi {angles}"
    )
