"""The walk-through's documents: ready to apply, and as the walk-through has them."""

import textwrap
from pathlib import Path

import pytest
import yaml
from manifests import ROOT, SAMPLES, read_documents, validate

from warmroute_lab.demo.rounds import ROUND1, ROUND2

WALK_THROUGH = ROOT.parent / "shared" / "reference" / "seed.txt"
MANIFESTS = sorted(SAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_it_validates(file: Path):
    for document in read_documents(file.read_text()):
        validate(document)


@pytest.mark.parametrize(("name", "body"), [("round1.txt", ROUND1), ("round2.txt", ROUND2)])
def test_the_requests_are_those_of_the_demo(name, body):
    assert (SAMPLES / name).read_bytes() == body + b"\n"


def walk_through_documents():
    """Its manifests: what begins with apiVersion, as far as the lines are indented as deep."""
    if not WALK_THROUGH.exists():
        pytest.skip("the walk-through's text is not beside this repository")
    block: list[str] = []
    for line in [*WALK_THROUGH.read_text().splitlines(), ""]:
        if line.lstrip().startswith("apiVersion:"):
            block = [line]
        elif block and line.startswith("    ") and line.isascii() and line.strip() not in {"---", "EOF"}:
            block.append(line)
        elif block:
            yield yaml.safe_load(textwrap.dedent("\n".join(block)))
            block = []


def test_they_are_as_the_walk_through_has_them():
    expected = list(walk_through_documents())
    names = ["vllm-service.yaml", "inference-pool.yaml", "inference-gateway.yaml", "llm-qa-benchmark.yaml"]
    ours = [document for name in names for document in read_documents((SAMPLES / name).read_text())]
    assert len(ours) == 10
    assert ours == expected
