"""A batch counts once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from warmroute.shared_state.duplicates import MOST_PICKERS, WINDOW, Duplicates


@given(st.permutations(range(64)), st.permutations(range(64)))
def test_each_is_new_once_in_any_order(first: list[int], second: list[int]) -> None:
    duplicates = Duplicates()
    assert all(duplicates.is_new(7, sequence) for sequence in first)
    assert not any(duplicates.is_new(7, sequence) for sequence in second)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3000))))
def test_none_is_new_twice(batches: list[tuple[int, int]]) -> None:
    duplicates = Duplicates()
    accepted = [batch for batch in batches if duplicates.is_new(*batch)]
    assert len(set(accepted)) == len(accepted)


def test_one_far_behind_counts_as_a_duplicate() -> None:
    duplicates = Duplicates()
    assert duplicates.is_new(7, 5000)
    assert not duplicates.is_new(7, 5000 - WINDOW)
    assert duplicates.is_new(7, 5001 - WINDOW)


def test_the_picker_heard_of_longest_ago_is_forgotten() -> None:
    duplicates = Duplicates()
    for picker in range(MOST_PICKERS + 1):
        assert duplicates.is_new(picker, 1)
    assert not duplicates.is_new(1, 1)
    assert duplicates.is_new(0, 1)
