"""The walk-through's documents: ready to apply, and as the walk-through has them."""

from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import SAMPLES, read_documents, validate
from tests.recordings import walk_through_manifests
from warmroute_lab.demo.rounds import ROUND1, ROUND2

MANIFESTS = sorted(SAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_it_validates(file: Path) -> None:
    for document in read_documents(file.read_text()):
        validate(document)


@pytest.mark.parametrize(("name", "body"), [("round1.txt", ROUND1), ("round2.txt", ROUND2)])
def test_the_requests_are_those_of_the_demo(name: str, body: Any) -> None:
    assert (SAMPLES / name).read_bytes() == body + b"\n"


def test_they_are_as_the_walk_through_has_them() -> None:
    expected = list(walk_through_manifests())
    names = ["vllm-service.yaml", "inference-pool.yaml", "inference-gateway.yaml", "llm-qa-benchmark.yaml"]
    ours = [document for name in names for document in read_documents((SAMPLES / name).read_text())]
    assert len(ours) == 10
    assert ours == expected
