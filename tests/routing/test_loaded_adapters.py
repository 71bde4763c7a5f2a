"""The adapters that one engine has loaded."""

from __future__ import annotations

from warmroute.pool.endpoint import MOST_ADAPTERS
from warmroute.routing.adapters import ASSUMED_LIMIT, LoadedAdapters


def test_an_adapter_is_loaded_once_a_request_for_it_is_sent() -> None:
    adapters = LoadedAdapters()
    adapters.use("a", 0.0)
    assert "a" in adapters
    assert "b" not in adapters


def test_a_new_process_has_none() -> None:
    adapters = LoadedAdapters()
    adapters.use("a", 0.0)
    adapters.clear()
    assert "a" not in adapters


def test_the_least_recently_used_goes_beyond_what_the_engine_keeps() -> None:
    adapters = LoadedAdapters()
    adapters.observe(("a", "b"), 2, 0.0)
    adapters.use("a", 1.0)
    adapters.use("c", 2.0)
    assert [name in adapters for name in "abc"] == [True, False, True]


def test_an_old_page_does_not_make_a_use_older() -> None:
    adapters = LoadedAdapters()
    adapters.observe((), 2, 0.0)
    adapters.use("a", 2.0)
    adapters.use("b", 1.5)
    adapters.observe(("a",), 2, 1.0)
    adapters.use("c", 3.0)
    assert [name in adapters for name in "abc"] == [True, False, True]


def test_a_page_with_more_than_the_engine_keeps() -> None:
    adapters = LoadedAdapters()
    adapters.observe([str(k) for k in range(3)], 2, 0.0)
    assert sum(str(k) in adapters for k in range(3)) == 2


def test_an_engine_that_names_no_limit_and_one_that_names_an_absurd_one() -> None:
    for limit, kept in ((0, ASSUMED_LIMIT), (10**9, MOST_ADAPTERS)):
        adapters = LoadedAdapters()
        adapters.observe((str(k) for k in range(MOST_ADAPTERS + 1)), limit, 0.0)
        assert sum(str(k) in adapters for k in range(MOST_ADAPTERS + 1)) == kept


def test_a_page_with_many_adapters_takes_few_steps() -> None:
    lookups = 0

    class Name(str):
        def __hash__(self) -> int:
            nonlocal lookups
            lookups += 1
            return super().__hash__()

    adapters = LoadedAdapters()
    adapters.observe([Name(k) for k in range(MOST_ADAPTERS)], 1, 0.0)
    assert lookups < 10 * MOST_ADAPTERS


def test_which_of_equally_old_ones_goes_depends_on_no_order() -> None:
    kept = []
    for names in ("abcdef", "fedcba"):
        adapters = LoadedAdapters()
        adapters.observe(names, 2, 0.0)
        kept.append([name for name in names if name in adapters])
    assert sorted(kept[0]) == sorted(kept[1])
