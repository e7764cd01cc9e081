"""Chains: graphs of steps, what they say and whether they can run."""
