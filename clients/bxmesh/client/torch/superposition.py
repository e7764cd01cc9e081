"""Superposition: from the frame of a generative model to that of a structure's file."""

from __future__ import annotations

import torch
from torch import Tensor

from bxmesh.client.names import invalid

__all__ = ["superpose"]


def superpose(coordinates: Tensor, reference: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns coordinates [..., N, 3] moved rigidly onto a reference [N, 3] (Kabsch 1976).

    The weights [N] say which atoms count; all the same unless given. The rotation and the shift are
    taken as constants: gradients are turned back into the caller's frame and not propagated through the
    fit, which is right for an energy of the shape alone, and for guidance. Half precision becomes float32.
    """
    if coordinates.shape[-2:] != reference.shape or reference.shape[-1:] != (3,):
        raise invalid(
            "coordinates",
            f"[..., N, 3] and a reference [N, 3] are due, not {list(coordinates.shape)} and"
            f" {list(reference.shape)}",
        )
    with torch.no_grad(), torch.autocast(coordinates.device.type, enabled=False):
        mobile = coordinates.detach().double()
        fixed = reference.detach().to(mobile)
        weight = mobile.new_ones(len(fixed)) if weights is None else weights.to(mobile)
        weight = (weight / weight.sum())[:, None]
        mobile_centre = (weight * mobile).sum(-2, keepdim=True)
        fixed_centre = (weight * fixed).sum(-2, keepdim=True)
        covariance = (weight * (mobile - mobile_centre)).mT @ (fixed - fixed_centre)
        # What is not finite cannot be fitted; it stays what it is, for the target to refuse.
        u, _, vt = torch.linalg.svd(covariance.nan_to_num(0.0, 0.0, 0.0))
        # The determinant keeps mirror images apart.
        signs = torch.ones_like(covariance[..., 0])
        signs[..., 2] = torch.linalg.det(u @ vt).sign()
        rotation = (u * signs[..., None, :]) @ vt
        shift = fixed_centre - mobile_centre @ rotation
    dtype = torch.promote_types(coordinates.dtype, torch.float32)
    with torch.autocast(coordinates.device.type, enabled=False):
        moved: Tensor = coordinates.to(dtype) @ rotation.to(dtype) + shift.to(dtype)
    return moved
