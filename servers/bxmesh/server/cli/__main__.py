"""`python -m bxmesh.server.cli`: the server's commands without the client's."""

import click

from bxmesh.server.cli.serve import serve

group = click.Group("bxmesh-server", commands={"serve": serve})

if __name__ == "__main__":
    group()
