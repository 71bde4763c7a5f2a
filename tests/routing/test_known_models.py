"""Names of models: adapters within a bound, and one name for all names of a model."""

from __future__ import annotations

from warmroute.pool.endpoint import ServedModels
from warmroute.request.inference import InferenceRequest
from warmroute.routing.known_models import MOST_ADAPTERS, KnownModels


def test_so_many_adapters_are_known_and_the_first_named_are_forgotten_first() -> None:
    models = KnownModels()
    models.add_adapters(f"adapter-{k}" for k in range(MOST_ADAPTERS + 1))
    assert not models.is_adapter("adapter-0")
    assert models.is_adapter("adapter-1")
    assert models.is_adapter(f"adapter-{MOST_ADAPTERS}")


def test_a_request_goes_under_the_one_name_of_its_model() -> None:
    models = KnownModels()
    models.replace_aliases([ServedModels(frozenset({"a", "b"}), aliases={"b": "a"})])
    assert models.canonical(InferenceRequest(model="b", seed=b"b")) == InferenceRequest(model="a", seed=b"a")
    assert models.canonical(InferenceRequest(model="c", seed=b"c")).model == "c"
    models.replace_aliases([])
    assert models.canonical(InferenceRequest(model="b", seed=b"b")).model == "b"
