"""The arithmetic, compiled by numba on first use and kept on disk."""
