"""The restraint library: where it is found, how it is made ready, and loading it once."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.types import LibraryDescription
from bxmesh.server.geometry.engine.words import words

if TYPE_CHECKING:
    from mmtbx.monomer_library import server

_CONFIGURED = "MMTBX_CCP4_MONOMER_LIB"
_CCP4 = "CLIBD_MON"
_CHEM_DATA = "chem_data"
_EMBEDDED = "embedded"
_PACKAGE = "coot_headless_api"
_MONOMERS = "share/coot/lib/data/monomers"
_LIST = "list/mon_lib_list.cif"
_GEOSTD_LIST = "geostd/list/geostd_list.cif"
_GEOSTD_LINKS = "geostd/rna_dna"
_LINKS = frozenset({"link_rna2p", "link_rna3p"})
_N_TERMINUS = "mod_NH1NOTPRO"
_CHEM_DATA_FOLDERS = ("mon_lib", "chem_data/mon_lib", "chem_data/geostd")

PREPARED_PREFIX = "bxmesh-monomers-"
"""How the folders are named that the embedded library is prepared in."""

_INSTALL = (
    "Install the extra `monomers` (pip install 'bxmesh[server,monomers]') or set "
    f"{_CONFIGURED} to the folder of a monomer library."
)


@dataclass(frozen=True)
class _Location:
    source: str
    path: Path
    """The root of the library; of the embedded one, as it lies in its package."""


class RestraintLibrary:
    """The restraint library of a process, in mmtbx's order of preference.

    `MMTBX_CCP4_MONOMER_LIB`, then chem_data, geostd or mon_lib of the cctbx installation, then
    `CLIBD_MON`, else the library inside the package of the extra `monomers`, which is made ready
    once under `cache`. Nothing is imported from cctbx before it is needed.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._location: _Location | None = None
        self._loaded: tuple[server.server, server.ener_lib] | None = None

    def describe(self) -> LibraryDescription:
        """Return what the library is and how complete; raises nothing and loads no cctbx."""
        try:
            location = self._locate()
        except EngineError as error:
            return LibraryDescription("", "", 0, False, False, False, remedy=error.message)
        names = _list_blocks(location.path)
        embedded = location.source == _EMBEDDED
        links = embedded or names >= _LINKS or (location.path.parent / _GEOSTD_LINKS).is_dir()
        hydrogens = _N_TERMINUS in names
        remedies = []
        if not links:
            remedies.append(
                f"DNA and RNA cannot be restrained: it has no links for nucleotides. {_INSTALL}"
            )
        if not hydrogens:
            remedies.append(
                f"Hydrogens are not restrained. To restrain them, set {_CONFIGURED} to the library "
                "of a Phenix installation."
            )
        if embedded:
            remedies.append("For ligands beyond the common ones, give restraint CIFs with a model.")
        return LibraryDescription(
            source=location.source,
            path=str(location.path),
            residues=len(_residue_files(location.path)),
            has_nucleic_acid_links=links,
            knows_hydrogens=hydrogens,
            complete=links and hydrogens and not embedded,
            remedy=" ".join(remedies),
        )

    def load(self) -> tuple[server.server, server.ener_lib]:
        """Return the monomer server and the energy library, parsed on the first call only.

        Raises EngineError with LIBRARY_MISSING or LIBRARY_UNREADABLE.
        """
        if self._loaded is None:
            self._loaded = self._load(self._locate())
        return self._loaded

    def with_restraints(self, dictionaries: Sequence[Any]) -> tuple[server.server, server.ener_lib]:
        """Return a library of its own that also has the parsed `dictionaries`.

        What one model brings must not be seen by the next, hence the copy. Raises EngineError with
        RESTRAINTS_UNREADABLE.
        """
        if not dictionaries:
            return self.load()
        monomers, energies = (_branch(part) for part in self.load())
        monomers.comp_comp_id_mod_dict = {}
        for number, dictionary in enumerate(dictionaries, start=1):
            try:
                monomers.convert_all(None, dictionary, process_tor=True)
                energies.convert_all(None, dictionary)
            except Exception as error:
                raise EngineError(
                    "RESTRAINTS_UNREADABLE",
                    f"Restraint dictionary {number} cannot be used: {words(error)}",
                    field="restraints",
                ) from error
        return monomers, energies

    @property
    def knows_hydrogens(self) -> bool:
        """Whether hydrogens, those of an N-terminus included, have the names mmtbx looks for."""
        monomers, _ = self.load()
        return _N_TERMINUS.removeprefix("mod_") in monomers.mod_mod_id_dict

    def _locate(self) -> _Location:
        if self._location is None:
            self._location = _environment(_CONFIGURED) or _chem_data() or _environment(_CCP4)
            self._location = self._location or _embedded()
        if self._location is None:
            raise EngineError(
                "LIBRARY_MISSING", f"No restraint library was found. {_INSTALL}", field="options"
            )
        return self._location

    def _load(self, location: _Location) -> tuple[server.server, server.ener_lib]:
        from mmtbx.monomer_library import server

        from bxmesh.server.geometry.engine import cctbx_first  # noqa: F401

        try:
            if location.source == _EMBEDDED:
                from bxmesh.server.geometry.engine import adapter

                version = importlib.metadata.version(_PACKAGE)
                prepared = adapter.prepare(location.path, version, self._cache)
                # Parts of mmtbx look for the library by themselves and must find this one.
                os.environ[_CONFIGURED] = str(prepared)
            return server.server(), server.ener_lib()
        except Exception as error:
            raise EngineError(
                "LIBRARY_UNREADABLE",
                f"The restraint library in {location.path} ({location.source}) cannot be read: "
                f"{words(error)}. {_INSTALL}",
                field="options",
            ) from error


def _environment(variable: str) -> _Location | None:
    folder = Path(os.environ.get(variable) or os.devnull)
    # A prepared folder comes from an earlier load in this process or its parent.
    if folder.name.startswith(PREPARED_PREFIX) or not (folder / _LIST).is_file():
        return None
    return _Location(variable, folder)


def _chem_data() -> _Location | None:
    import libtbx.load_env

    for folder in _CHEM_DATA_FOLDERS:
        path = libtbx.env.find_in_repositories(relative_path=folder)
        if path and (Path(path) / _LIST).is_file():
            return _Location(_CHEM_DATA, Path(path))
    return None


def _embedded() -> _Location | None:
    # Found without importing the package: its binary is large and not needed.
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        root = Path(folder) / _MONOMERS
        if (root / _LIST).is_file():
            return _Location(_EMBEDDED, root)
    return None


def _residue_files(root: Path) -> list[Path]:
    roots = [root, root.parent / "geostd"]
    return [path for folder in roots for path in folder.glob("?/*.cif")]


def _list_blocks(root: Path) -> frozenset[str]:
    lists = [root / _LIST, root.parent / _GEOSTD_LIST]
    text = "\n".join(path.read_text("utf-8", "replace") for path in lists if path.is_file())
    return frozenset(re.findall(r"^data_(\S+)", text, re.MULTILINE))


def _branch(part: Any) -> Any:
    branch = copy.copy(part)
    for name, value in vars(part).items():
        if isinstance(value, dict | list):
            setattr(branch, name, copy.copy(value))
    return branch
