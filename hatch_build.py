"""Build hook: compile ``protos/`` into ``src/warmroute/extproc`` (also for editable installs)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtoBuildHook(BuildHookInterface[Any]):
    """Runs protoc once for each build."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        out = root / "src" / "warmroute" / "extproc"
        well_known = Path(protoc.__file__).parent / "_proto"
        code = protoc.main(
            [
                "protoc",
                f"-I{root / 'protos'}",
                f"-I{well_known}",
                f"--python_out={out}",
                f"--pyi_out={out}",
                "ext_proc.proto",
            ]
        )
        if code != 0:
            raise RuntimeError(f"protoc failed with exit code {code}")
        build_data["artifacts"] += [
            "src/warmroute/extproc/ext_proc_pb2.py",
            "src/warmroute/extproc/ext_proc_pb2.pyi",
        ]
