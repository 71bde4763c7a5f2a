"""The worked example of docs/strategies.md runs as it stands there."""

from __future__ import annotations

import random
import re
import sys
import tomllib
from dataclasses import fields
from operator import attrgetter
from pathlib import Path

import pytest

from tests.factories import routing_constants
from warmroute.pool.endpoint import Endpoint, EndpointSpec
from warmroute.pool.pool import Pool
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.routing.decision import Decision
from warmroute.routing.router import Router
from warmroute.routing.strategies import Candidate

DOC = Path(__file__).parents[2] / "docs" / "strategies.md"


def block(language: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    return str(code)


def test_the_table_names_every_attribute_of_a_candidate() -> None:
    text = DOC.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (`?[a-z{}]+`?) \|", text, re.MULTILINE))
    own = [field.name for field in fields(Candidate) if field.name != "endpoint"]
    assert [name for name in rows if "." not in name] == own
    assert {name: rows[name] for name in own} == {field.name: field.type for field in fields(Candidate)[1:]}
    spec = EndpointSpec("d", "a", "10.0.0.1", 8000, {"tier": "fast"})
    candidate = Candidate(Endpoint(spec, engine="vllm", now=0.0), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    nested = [name for name in rows if "." in name]
    assert {"endpoint.id", "endpoint.spec.labels", "endpoint.spec.address"} <= set(nested)
    for name in nested:
        value = attrgetter(name)(candidate)
        assert rows[name] == type(value).__name__


def test_the_example_is_found_by_its_entry_point_and_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads(block("toml"))["project"]
    (tmp_path / "my_routing.py").write_text(block("python"), encoding="utf-8")
    metadata = tmp_path / f"my_routing-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    points = project["entry-points"]["warmroute.strategies"]
    lines = [f"{name} = {value}" for name, value in points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[warmroute.strategies]", *lines]))
    monkeypatch.syspath_prepend(str(tmp_path))

    pool = Pool()
    labels = [{"tier": "slow"}, {"tier": "fast"}, {}]
    pool.replace([EndpointSpec("d", str(k), f"10.0.0.{k}", 8000, one) for k, one in enumerate(labels)], 0.0)
    router = Router(pool, routing_constants(routing_strategy="PREMIUM_FIRST"), rng=random.Random(1), now=0.0)

    def chosen(model: str, k: int) -> str:
        data = f"{model} {k} ".encode() * 50
        request = InferenceRequest(model=model, parts=(PromptPart(data, len(data)),), prompt_bytes=len(data))
        decision = router.pick(request, 0.0)
        assert isinstance(decision, Decision)
        return decision.endpoint.spec.name

    assert {chosen("m-premium", k) for k in range(5)} == {"1"}
    assert {chosen("m", k) for k in range(10)} == {"0", "2"}
    sys.modules.pop("my_routing", None)
