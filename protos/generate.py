"""Compile the .proto files of this directory to Python: ``python protos/generate.py [ROOT]`` (`make protos`).

The modules go to ROOT, by default ``src`` of this checkout, into the package that speaks the protocol. They are committed,
so that a checkout can be read, type-checked and installed without a compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
PACKAGES = {
    "ext_proc.proto": "warmroute/extproc",
    "health.proto": "warmroute/extproc",
    "gateway_extension.proto": "warmroute/gateway_extension",
    "shared_state.proto": "warmroute/shared_state",
}
"""By .proto file: the directory of the package that its module belongs to, below ROOT."""
WELL_KNOWN = Path(protoc.__file__).parent / "_proto"
"""Protobuf's own files, google/protobuf/*.proto."""


def generate(root: Path) -> None:
    """Write ``<name>_pb2.py`` and ``<name>_pb2.pyi`` of every .proto file. Raises RuntimeError if protoc fails."""
    for name, package in PACKAGES.items():
        out = root / package
        out.mkdir(parents=True, exist_ok=True)
        arguments = ["protoc", f"-I{PROTOS}", f"-I{WELL_KNOWN}", f"--python_out={out}", f"--pyi_out={out}", name]
        if protoc.main(arguments) != 0:
            raise RuntimeError(f"protoc failed on {name}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS.parent / "src")
