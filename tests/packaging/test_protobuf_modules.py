"""The committed protobuf modules are what the locked protoc makes of ``protos/``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*_pb2.py*") if path.suffix != ".pyc")

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    subprocess.run([sys.executable, str(ROOT / "protos/generate.py"), str(out)], check=True, timeout=300)
    return out


def test_every_module_is_generated_and_committed(generated: Path) -> None:
    assert sorted(path.relative_to(generated) for path in generated.rglob("*.py*")) == MODULES


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_is_up_to_date(generated: Path, module: Path) -> None:
    """After a change of ``protos/``: `make protos`."""
    assert (ROOT / "src" / module).read_text(encoding="utf-8") == (generated / module).read_text(encoding="utf-8")
