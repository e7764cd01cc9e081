"""Conversations: several agents, one answer, remembered."""
