"""Names of models: adapters within a bound, and one name for all names of a model."""

from __future__ import annotations

from warmroute.pool.endpoint import MOST_SERVED_MODELS, ServedModels
from warmroute.request.inference import InferenceRequest
from warmroute.routing.known_models import MOST_ADAPTER_NAMES, KnownModels


def test_so_many_adapters_are_known_and_those_named_longest_ago_are_forgotten_first() -> None:
    models = KnownModels()
    names = [f"adapter-{k}" for k in range(MOST_ADAPTER_NAMES)]
    models.add_adapters(names)
    models.add_adapters(["adapter-0", "new"])
    assert [name for name in names if not models.is_adapter(name)] == ["adapter-1"]
    assert models.is_adapter("new")


def test_all_adapters_that_one_engine_lists_are_known() -> None:
    models = KnownModels()
    names = [f"adapter-{k}" for k in range(MOST_SERVED_MODELS)]
    for _ in range(2):
        models.add_adapters(names)
        assert all(map(models.is_adapter, names))


def test_a_request_goes_under_the_one_name_of_its_model() -> None:
    models = KnownModels()
    models.replace_aliases([ServedModels(frozenset({"a", "b"}), aliases={"b": "a"})])
    assert models.canonical(InferenceRequest(model="b", seed=b"b")) == InferenceRequest(model="a", seed=b"a")
    assert models.canonical(InferenceRequest(model="c", seed=b"c")).model == "c"
    models.replace_aliases([])
    assert models.canonical(InferenceRequest(model="b", seed=b"b")).model == "b"
