"""Searches for pairs as operators of PyTorch, which compiled modules call without looking inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bxmesh.restraints.torch.cells import Pairs, near_pairs
from bxmesh.restraints.torch.contacts import Contacts
from bxmesh.restraints.torch.images import ImagePairs, Lattice, image_pairs

__all__ = ["pairs_to_images", "pairs_within"]

_Within = tuple[Tensor, Tensor, Tensor, Tensor]
_ToImages = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.no_grad()
def pairs_within(sites: Tensor, good: Tensor, contacts: Contacts) -> Pairs:
    """Returns the pairs that may touch in the good [B] of samples of sites [3, B, N]."""
    if torch.compiler.is_compiling():
        return Pairs(*_near_pairs(sites.detach(), good, list(contacts)))
    return near_pairs(sites, good, contacts)


@torch.no_grad()
def pairs_to_images(
    sites: Tensor, good: Tensor, contacts: Contacts, lattice: Lattice
) -> ImagePairs:
    """Returns the pairs with images that may touch in the good [B] of samples of sites [3, B, N]."""
    if torch.compiler.is_compiling():
        return ImagePairs(*_image_pairs(sites.detach(), good, list(contacts), list(lattice)))
    return image_pairs(sites, good, contacts, lattice)


def _operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    # PyTorch before 2.4 has none, and compiles no such module.
    if not hasattr(torch.library, "custom_op"):
        return lambda function: function
    return torch.library.custom_op(f"bxmesh::{name}", mutates_args=())


@_operator("near_pairs")
def _near_pairs(sites: Tensor, good: Tensor, contacts: list[Tensor]) -> _Within:
    first, second, contact, crowded = near_pairs(sites, good, Contacts(*contacts))
    return first, second, contact, crowded


@_operator("image_pairs")
def _image_pairs(
    sites: Tensor, good: Tensor, contacts: list[Tensor], lattice: list[Tensor]
) -> _ToImages:
    pairs = image_pairs(sites, good, Contacts(*contacts), Lattice(*lattice))
    first, second, contact, operator, shift, held, crowded = pairs
    return first, second, contact, operator, shift, held, crowded


def _fake_pairs(sites: Tensor, good: Tensor, contacts: list[Tensor]) -> _Within:
    size = torch.library.get_ctx().new_dynamic_size()
    whole = good.new_empty(size, dtype=torch.long)
    contact = good.new_empty(size, dtype=torch.float64)
    return whole, torch.empty_like(whole), contact, torch.empty_like(good)


def _fake_image_pairs(
    sites: Tensor, good: Tensor, contacts: list[Tensor], lattice: list[Tensor]
) -> _ToImages:
    first, second, contact, crowded = _fake_pairs(sites, good, contacts)
    operator, held = torch.empty_like(first), torch.empty_like(first, dtype=torch.bool)
    shift = first.new_empty(first.shape[0], 3)
    return first, second, contact, operator, shift, held, crowded


if hasattr(torch.library, "custom_op"):
    _near_pairs.register_fake(_fake_pairs)
    _image_pairs.register_fake(_fake_image_pairs)
