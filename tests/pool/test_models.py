"""The model table and the weighted draw."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from warmroute.pool.models import Criticality, Model, ModelTable, ModelTarget


def test_a_model_without_targets_keeps_its_name() -> None:
    assert Model("llama").draw(0.7) == "llama"


@given(st.lists(st.integers(1, 100), min_size=1, max_size=5))
def test_targets_are_drawn_by_weight(weights: list[int]) -> None:
    model = Model("m", tuple(ModelTarget(f"t{i}", weight) for i, weight in enumerate(weights)))
    steps = sum(weights)
    drawn = [model.draw(float(Fraction(2 * step + 1, 2 * steps))) for step in range(steps)]
    assert [drawn.count(f"t{i}") for i in range(len(weights))] == weights


def test_the_extremes_of_chance_draw_the_first_and_the_last() -> None:
    model = Model("m", (ModelTarget("a", 1), ModelTarget("b", 3)))
    assert model.draw(0.0) == "a"
    assert model.draw(1.0 - 2**-53) == "b"


def test_the_first_of_two_models_with_one_name_counts() -> None:
    table = ModelTable()
    table.replace([Model("m", criticality=Criticality.CRITICAL), Model("m"), Model("n")])
    found = table.get("m")
    assert found is not None
    assert found.criticality is Criticality.CRITICAL
    assert len(table) == 2
    table.replace([])
    assert table.get("m") is None
