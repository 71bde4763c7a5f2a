"""examples/traces/six_loads.py writes traces that the replay reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from warmroute_lab.replay.trace_files import read

SCRIPT = Path(__file__).parents[3] / "examples/traces/six_loads.py"


@pytest.mark.integration
def test_each_load_is_a_trace_with_shared_blocks_and_equal_for_equal_seeds(tmp_path: Path) -> None:
    for name in ("one", "two"):
        subprocess.run(
            [sys.executable, SCRIPT, tmp_path / name, "--seed", "5"], check=True, capture_output=True, timeout=120
        )
    files = sorted((tmp_path / "one").iterdir())
    assert [file.name for file in files] == [
        f"{load}-5.jsonl"
        for load in ("batch_and_chat", "fan_out", "few_shot", "reasoning", "tenants", "zipf_documents")
    ]
    for file in files:
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
        trace = read(file, seed=1)
        assert len(trace.requests) >= 1500
        blocks = [block for request in trace.requests for block in request.blocks(16)]
        assert len(set(blocks)) < 0.9 * len(blocks)
