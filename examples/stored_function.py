"""A Python function is stored, called, streamed, and asked what became of it.

Needs a running mesh: `bxmesh serve`, then `python examples/stored_function.py`.
"""

from bxmesh.client import FunctionFailed, Mesh


async def deviation(first: list[list[float]], second: list[list[float]]) -> float:
    """Returns the root mean square distance of atoms that correspond."""
    import math

    import mesh  # type: ignore[import-not-found]  # what the sandbox has of the mesh

    total = 0.0
    for done, (one, other) in enumerate(zip(first, second, strict=True), 1):
        total += sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
        await mesh.progress({"atoms": done})
    print("all atoms compared")
    return math.sqrt(total / len(first))


def main() -> None:
    """Stores the function, and calls it in three ways."""
    here = [[0.0, 0.0, 0.0], [1.5, 0.0, 0.0]]
    moved = [[0.0, 3.0, 4.0], [1.5, 3.0, 4.0]]
    with Mesh() as mesh:
        # Its annotations become schemas, and the example is tried before it is stored.
        stored = mesh.functions.create(
            "examples.deviation",
            deviation,
            host_functions=["mesh.progress"],
            example={"first": here, "second": moved},
        )
        print(f"{stored.name} {stored.version} is {', '.join(stored.aliases)}")

        print(f"{mesh.functions.call(stored.name, first=here, second=moved):.1f} Å")

        for event in mesh.functions.stream(stored.name, {"first": here, "second": moved}):
            print(event.kind, event.progress or event.printed.strip())

        try:
            mesh.functions.call(stored.name, first=[], second=[])
        except FunctionFailed as error:
            print(error.message)

        figures = mesh.functions.stats(stored.name)
        print(f"{figures.completed} of {figures.executions} executions completed")


if __name__ == "__main__":
    main()
