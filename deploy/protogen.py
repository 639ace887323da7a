"""
Generate libs/pb from protos/: messages, gRPC stubs, and the types of both.

The output is committed. `make proto` runs this; `make proto-check` runs it into a temporary directory and
compares, so the result must depend on nothing but the protos and the versions in deploy/constraints.txt.
For the same reason there is one route only: buf would fill in descriptors a little differently.

The stubs are typed for both kinds of channel: `XStub(grpc.aio.Channel)` is an `XAsyncStub` to mypy,
`XStub(grpc.Channel)` is the blocking one, and a servicer may be written with `async def` and
`grpc.aio.ServicerContext`.
"""

import argparse
import importlib.resources
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def generate(protos: Path, out: Path) -> None:
    """Write the code of every proto below *protos* into the empty directory *out*."""
    names = sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))
    if not names:
        raise SystemExit(f"no .proto files below {protos}")
    with tempfile.NamedTemporaryFile(suffix=".binpb") as descriptors:
        arguments = [
            "protoc",
            f"--proto_path={protos}",
            f"--proto_path={importlib.resources.files('grpc_tools') / '_proto'}",  # google/protobuf/*
            f"--plugin=protoc-gen-mypy={_plugin('protoc-gen-mypy')}",
            f"--plugin=protoc-gen-mypy_grpc={_plugin('protoc-gen-mypy_grpc')}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            f"--descriptor_set_out={descriptors.name}",
            *names,
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed; nothing was written")
        described = FileDescriptorSet.FromString(Path(descriptors.name).read_bytes())
    # protoc writes a *_pb2_grpc for every file; one without a service holds nothing but a version check.
    for file in described.file:
        if not file.service:
            stem = file.name.removesuffix(".proto")
            for suffix in ("_pb2_grpc.py", "_pb2_grpc.pyi"):
                (out / f"{stem}{suffix}").unlink(missing_ok=True)
    # Without the marker type checkers ignore the types of an installed package.
    (out / "hopper" / "py.typed").touch()


def publish(fresh: Path, out: Path) -> None:
    """Make *out* hold what *fresh* holds: write what differs, remove what is no longer generated."""
    wanted = {path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()}
    for name in sorted(wanted):
        content = (fresh / name).read_bytes()
        target = out / name
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    for path in sorted(out.rglob("*"), reverse=True):  # children before their directory
        if path.is_file() and path.name.endswith(GENERATED) and path.relative_to(out) not in wanted:
            path.unlink()
        elif path.is_dir() and all(child.name == "__pycache__" for child in path.iterdir()):
            shutil.rmtree(path)


def _plugin(name: str) -> str:
    """Find a protoc plugin beside this interpreter, not on PATH, where another version may come first."""
    found = shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise SystemExit(f"{name} is not installed for {sys.executable}; run: make setup")
    return found


def main() -> None:
    """Run the generator."""
    parser = argparse.ArgumentParser(description="Generate Python code from protos/.")
    parser.add_argument("--protos", type=Path, default=ROOT / "protos", help="default: protos")
    parser.add_argument("--out", type=Path, default=ROOT / "libs" / "pb", help="default: libs/pb")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        generate(options.protos.resolve(), Path(fresh))
        publish(Path(fresh), options.out)


if __name__ == "__main__":
    main()
