"""Agents: their connections, messages, tasks and state."""
