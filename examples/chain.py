"""A chain of three stored functions: two at the same time, and one under a condition.

Needs a running mesh: `bxmesh serve`, then `python examples/chain.py [PICTURE.svg]`.
"""

import sys
from pathlib import Path

from bxmesh.client import Chain, ChainFailed, ChainStep, Mesh
from bxmesh.client.cli.chain_picture import svg


def measure(values: list[float]) -> dict[str, float]:
    """Returns the mean."""
    return {"mean": sum(values) / len(values)}


def spread(values: list[float]) -> dict[str, float]:
    """Returns the standard deviation."""
    import math

    mean = sum(values) / len(values)
    return {"spread": math.sqrt(sum((each - mean) ** 2 for each in values) / len(values))}


def trim(values: list[float], around: float, within: float) -> dict[str, list[float]]:
    """Returns what lies near enough."""
    return {"kept": [each for each in values if abs(each - around) <= within]}


def main() -> None:
    """Stores the functions, and runs the chain in chain.yaml, and one that fails."""
    with Mesh() as mesh:
        for function in (measure, spread, trim):
            mesh.functions.create(f"examples.{function.__name__}", function)
        chain = Chain.read(Path(__file__).with_name("chain.yaml"))

        # Start to end in one call.
        print(mesh.chains.run(chain, {"values": [1, 2, 3], "limit": 2}))

        # Step by step: the run goes on by itself, whoever watches.
        run = mesh.chains.start(chain, {"values": [1, 2, 3, 50], "limit": 2})
        told: set[str] = set()
        for change in mesh.chains.watch(run.run_id):
            # The first change has the whole run, with what has ended before the watch began.
            for step in change.run.steps if change.run else (change.step,):
                if step and step.state == "completed" and step.step_id not in told:
                    told.add(step.step_id)
                    print(step.step_id, step.output)
        ended = mesh.chains.get(run.run_id)
        print(ended.value)
        for picture in sys.argv[1:]:
            Path(picture).write_text(svg(ended.message), encoding="utf-8")

        # The same in Python, with nothing to measure.
        bad = Chain([ChainStep("mean", function="examples.measure")])
        try:
            mesh.chains.run(bad, {"values": []})
        except ChainFailed as error:
            print(error.message)


if __name__ == "__main__":
    main()
