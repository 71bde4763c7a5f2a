"""Files recorded from real systems, kept in ``tests/data`` (see its README for where each comes from)."""

from __future__ import annotations

import lzma
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parent / "data"
ENGINE = DATA / "engine"
WALK_THROUGH = DATA / "walk-through.txt"
MOONCAKE = DATA / "mooncake-conversation-500.jsonl.xz"


def engine_recording(name: str) -> bytes:
    """What a real engine answered."""
    return (ENGINE / name).read_bytes()


def engine_traces() -> list[Path]:
    """Load traces with the measured latency of each request, one file a run."""
    return sorted(ENGINE.glob("*.jsonl"))


def mooncake_trace() -> str:
    """The first 500 requests of Mooncake's conversation trace, one JSON object a line."""
    return lzma.decompress(MOONCAKE.read_bytes()).decode()


def walk_through_commands() -> list[str]:
    """The two shell commands that write round1.txt and round2.txt."""
    return [line for line in WALK_THROUGH.read_text().splitlines() if line.lstrip().startswith("echo '{")]


def walk_through_requests() -> list[bytes]:
    """The two request bodies, as the shell commands write them."""
    return [" ".join(shlex.split(command)[1:-2]).encode() + b"\n" for command in walk_through_commands()]


def walk_through_manifests() -> Iterator[dict[str, Any]]:
    """Its Kubernetes objects: each block from ``apiVersion:`` down to a line that is not indented."""
    block: list[str] = []
    for line in [*WALK_THROUGH.read_text().splitlines(), ""]:
        if line.lstrip().startswith("apiVersion:"):
            block = [line]
        elif block and line.startswith("    ") and line.strip() not in {"---", "EOF"}:
            block.append(line)
        elif block:
            yield yaml.safe_load(textwrap.dedent("\n".join(block)))
            block = []
