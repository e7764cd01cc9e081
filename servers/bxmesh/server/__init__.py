"""The bxmesh servers."""
