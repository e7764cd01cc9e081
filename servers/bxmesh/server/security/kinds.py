"""The kinds of security records that every server holds a copy of."""

from __future__ import annotations

from .addresses import IP_BLOCK
from .directory import API_KEY, IDENTITY, ROLE
from .policies import POLICY
from .token_keys import TOKEN_KEY
from .tokens import REVOKED_TOKEN

__all__ = ["KINDS"]

KINDS = (IDENTITY, ROLE, API_KEY, POLICY, IP_BLOCK, TOKEN_KEY, REVOKED_TOKEN)
