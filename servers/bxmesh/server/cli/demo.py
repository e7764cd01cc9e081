"""`bxmesh demo`."""

import click


@click.command()
def demo() -> None:
    """Run the main job on a real crystal structure."""
