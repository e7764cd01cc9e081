"""Generates, lints and compares the protobuf contract: generate [--check] | lint | breaking [REF].

Everything runs in a small environment of its own, `.venv-proto`, because code for protobuf 6 comes
from a generator that cannot share an environment with a protobuf 7 runtime.
"""

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
GENERATED = ROOT / "generated"
TOOLS = ROOT / ".venv-proto"
PINS = (
    "grpcio-tools==1.76.0",
    "grpcio==1.76.0",
    "protobuf==6.33.6",
    "mypy-protobuf==5.1.0",
    "googleapis-common-protos==1.76.0",
    "protovalidate==2.1.0",
    "buf-bin==1.75.0",
)
CONTRACT = '''"""The contract as one self-contained descriptor set, for any language to load."""

from importlib import resources


def descriptor_set() -> bytes:
    """Return a serialized google.protobuf.FileDescriptorSet, imports included."""
    return resources.files(__name__).joinpath("bxmesh.binpb").read_bytes()
'''


def enter_tools() -> None:
    """Restart this script inside the pinned tool environment, made first when missing or stale."""
    if Path(sys.prefix).resolve() == TOOLS.resolve():
        return
    python, stamp = TOOLS / "bin" / "python", TOOLS / "pins.txt"
    if not stamp.is_file() or stamp.read_text() != "\n".join(PINS):
        venv.create(TOOLS, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True)
        stamp.write_text("\n".join(PINS))
    os.execv(python, [str(python), __file__, *sys.argv[1:]])


def protoc(*arguments: str) -> None:
    """Run protoc from grpcio-tools; its plugins are found beside the running interpreter."""
    environment = os.environ | {"PATH": f"{TOOLS / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments]
    if subprocess.run(command, env=environment).returncode:
        raise SystemExit("protoc refused the contract")


def write_rules(path: Path) -> None:
    """Write the descriptors of buf/validate, which protovalidate ships only as Python code."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
    from protovalidate._gen.buf.validate.validate_pb import desc

    files: dict[str, bytes] = {}

    def collect(file: Any) -> None:
        for dependency in file.dependencies:
            collect(dependency)
        files[file.proto.name] = file.proto.to_binary()

    collect(desc())
    rules = FileDescriptorSet(file=map(FileDescriptorProto.FromString, files.values()))
    path.write_bytes(rules.SerializeToString(deterministic=True))


def sources(proto: Path) -> list[str]:
    """List the contract's files relative to their root, sorted."""
    return sorted(path.relative_to(proto).as_posix() for path in proto.rglob("*.proto"))


def inputs(proto: Path, rules: Path) -> list[str]:
    """Name where protoc finds the contract, google.rpc and the validation rules."""
    from google.rpc import status_pb2

    google = Path(status_pb2.__file__).parent.parent.parent
    return [f"--proto_path={proto}", f"--proto_path={google}", f"--descriptor_set_in={rules}"]


def write_image(proto: Path, image: Path, *options: str) -> None:
    """Write the contract and everything it imports as one descriptor set."""
    rules = image.with_suffix(".rules")
    write_rules(rules)
    protoc(*inputs(proto, rules), "--include_imports", *options, f"-o{image}", *sources(proto))
    rules.unlink()


def generate(output: Path) -> None:
    """Generate the Python code and the descriptor image of the contract into a folder."""
    contract = output / "bxmesh" / "contract"
    contract.mkdir(parents=True)
    (contract / "__init__.py").write_text(CONTRACT)
    write_image(PROTO, contract / "bxmesh.binpb")
    rules = output / "rules"
    write_rules(rules)
    messages = [f"--python_out={output}", f"--mypy_out=quiet:{output}"]
    protoc(f"--descriptor_set_in={rules}", *messages, "buf/validate/validate.proto")
    services = [f"--grpc_python_out={output}", f"--mypy_grpc_out=quiet:{output}"]
    files = sources(PROTO)
    protoc(*inputs(PROTO, rules), *messages, *files)
    with_service = [file for file in files if file.endswith("_service.proto")]
    protoc(*inputs(PROTO, rules), *services, *with_service)
    rules.unlink()
    for area in (output / "bxmesh").iterdir():
        (area / "py.typed").touch()


def differences(fresh: Path, current: Path) -> Iterator[tuple[str, Path]]:
    """Yield what differs between two generated trees: missing, changed or stale files."""

    def tree(root: Path) -> set[Path]:
        return {
            path.relative_to(root)
            for path in root.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }

    wanted, present = tree(fresh), tree(current)
    for path in sorted(wanted | present):
        if path not in present:
            yield "missing", path
        elif path not in wanted:
            yield "stale", path
        elif not filecmp.cmp(fresh / path, current / path, shallow=False):
            yield "changed", path


def update(check: bool) -> int:
    """Bring generated/ up to date, or only say what is not."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        found = list(differences(fresh, GENERATED))
        for kind, path in found:
            if check:
                print(f"{kind}: generated/{path}")
            elif kind == "stale":
                (GENERATED / path).unlink()
            else:
                (GENERATED / path).parent.mkdir(parents=True, exist_ok=True)
                (GENERATED / path).write_bytes((fresh / path).read_bytes())
    if check and found:
        print("generated/ does not match proto/: run `make proto`")
    return int(check and bool(found))


def lint() -> int:
    """Lint the contract by buf.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        write_image(PROTO, image, "--include_source_info")
        return subprocess.run([TOOLS / "bin" / "buf", "lint", image], cwd=ROOT).returncode


def breaking(reference: str) -> int:
    """Compare the contract with the one of a git reference by buf.yaml."""
    archive = subprocess.run(
        ["git", "archive", reference, "proto"], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode:
        print(f"{reference} has no proto/ to compare with: {archive.stderr.decode().strip()}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        before, now = Path(folder) / "before.binpb", Path(folder) / "now.binpb"
        write_image(Path(folder) / "proto", before)
        write_image(PROTO, now, "--include_source_info")
        buf = TOOLS / "bin" / "buf"
        return subprocess.run([buf, "breaking", now, "--against", before], cwd=ROOT).returncode


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("generate").add_argument("--check", action="store_true")
    commands.add_parser("lint")
    commands.add_parser("breaking").add_argument("reference", nargs="?", default="main")
    chosen = parser.parse_args(arguments)
    enter_tools()
    if chosen.command == "generate":
        return update(chosen.check)
    return lint() if chosen.command == "lint" else breaking(chosen.reference)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
