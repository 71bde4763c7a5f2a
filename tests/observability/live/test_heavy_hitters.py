"""The most frequent keys in bounded memory."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from warmroute.observability.live.heavy_hitters import HeavyHitters


def counted(keys: list[int], size: int) -> HeavyHitters[str]:
    hitters: HeavyHitters[str] = HeavyHitters(size)
    for key in keys:
        hitters.add(key, f"detail of {key}")
    return hitters


@given(keys=st.lists(st.integers(0, 30), max_size=400), size=st.integers(1, 8))
def test_counts_are_within_their_bounds_and_memory_too(keys: list[int], size: int) -> None:
    hitters = counted(keys, size)
    found = {hitter.key: hitter for hitter in hitters.hitters()}
    assert len(found) <= 2 * size
    for key, occurrences in Counter(keys).items():
        if key in found:
            assert found[key].least <= occurrences <= found[key].count
            assert found[key].detail == f"detail of {key}"
        else:
            assert occurrences <= hitters.floor


@given(
    keys=st.lists(st.integers(0, 30), max_size=300),
    size=st.integers(1, 8),
    decays=st.sets(st.integers(0, 299), max_size=20),
)
def test_decayed_counts_are_within_their_bounds(keys: list[int], size: int, decays: set[int]) -> None:
    hitters: HeavyHitters[str] = HeavyHitters(size)
    occurrences: Counter[int] = Counter()
    exact: dict[int, float] = {}
    for place, key in enumerate(keys):
        hitters.add(key, "")
        exact[key] = exact.get(key, 0.0) + 1
        occurrences[key] += 1
        if place in decays:
            hitters.decay(0.5)
            exact = {key: count / 2 for key, count in exact.items()}
    found = {hitter.key: hitter for hitter in hitters.hitters()}
    for key, count in exact.items():
        if key in found:
            assert found[key].least <= count + 1e-9
            assert found[key].count >= count - 1e-9
        else:
            assert count <= hitters.floor + 1e-9


def test_a_frequent_key_survives_a_flood_of_others() -> None:
    keys = [key for k in range(10_000) for key in (-1, k)]
    hitters = counted(keys, 64)
    best = max(hitters.hitters(), key=lambda hitter: hitter.least)
    assert best.key == -1
    assert best.least == 10_000
    assert hitters.floor <= 10_000 / 64 + 1


def test_what_no_longer_occurs_is_forgotten() -> None:
    hitters = counted([1, 2, 3], 64)
    for _ in range(20):
        hitters.decay(0.5)
    assert hitters.hitters() == []
    assert hitters.floor <= 0.01
