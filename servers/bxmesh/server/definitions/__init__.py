"""Agents as data: what hosts run."""
