"""Storm after storm, each with a seed of its own: `make soak`, or with how many and from which seed on."""

from __future__ import annotations

import asyncio
import itertools
import sys

from tests.chaos.storm import storm, tell


def main() -> None:
    """Runs until it is stopped, or so many storms; ends with the first that loses something."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else None
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for seed in itertools.count(first) if rounds is None else range(first, first + rounds):
        outcome = asyncio.run(storm(seed, messages=20_000, tasks=5_000, poison=50, kills=40))
        print(f"storm {seed}: {tell(outcome)}", flush=True)
        outcome.check()


if __name__ == "__main__":
    main()
