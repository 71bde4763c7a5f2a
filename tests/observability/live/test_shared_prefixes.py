"""The beginnings that most prompts share: which are shown, and what nobody learns from them."""

from __future__ import annotations

import pytest

from warmroute.observability.live.shared_prefixes import (
    HALF_LIFE,
    LENGTHS,
    MOST_CHECKPOINTS,
    SHORTEST,
    SharedPrefix,
    SharedPrefixes,
)
from warmroute.prefix.chain import Chain, build
from warmroute.request.inference import PromptPart


def chain(*texts: str) -> Chain:
    return build(b"m", [PromptPart(text.encode(), len(text.encode())) for text in texts])


def filler(name: str, length: int) -> str:
    return (f"{name} " * length)[:length]


def top(prefixes: SharedPrefixes, now: float, most: int = 10) -> list[SharedPrefix]:
    prefixes.decay(now)
    return prefixes.top(most)


def test_a_shared_system_prompt_is_one_row_with_its_rate_and_the_length_that_is_shared() -> None:
    prefixes = SharedPrefixes(key=b"k", now=0.0)
    system = filler("system", 13_000)
    now = 0.0
    for k in range(3000):
        prefixes.count(chain(system, filler(f"question {k}", 20_000)))
        now += 0.1
        if k % 10 == 0:
            prefixes.decay(now)
    rows = top(prefixes, now)
    assert len(rows) == 1
    assert rows[0].length == 12_288
    assert rows[0].requests_per_second == pytest.approx(10, rel=0.1)


def test_a_longer_beginning_is_shown_beside_the_shorter_one_if_fewer_have_it() -> None:
    prefixes = SharedPrefixes(key=b"k", now=0.0)
    system, document = filler("system", 9000), filler("document", 20_000)
    for k in range(100):
        prefixes.count(chain(system, document if k % 2 else filler(f"other {k}", 20_000), f"question {k}"))
    rows = top(prefixes, 1.0)
    assert [row.length for row in rows] == [27_648, 8192]
    assert rows[1].requests_per_second == pytest.approx(2 * rows[0].requests_per_second)


def test_short_prompts_and_prompts_that_come_once_are_not_shown() -> None:
    prefixes = SharedPrefixes(key=b"k", now=0.0)
    for k in range(50):
        prefixes.count(chain(filler("short", SHORTEST - 1)))
        prefixes.count(chain(filler(f"alone {k}", 30_000)))
    assert top(prefixes, 1.0) == []


def test_prompts_that_differ_before_the_next_length_look_the_same() -> None:
    """A guess at the text between two lengths changes nothing that is shown."""
    rows = []
    for guess in ("right", "wrong"):
        prefixes = SharedPrefixes(key=b"k", now=0.0)
        for _ in range(5):
            prefixes.count(chain(filler("system", 8500), "the right secret", filler("a", 3000)))
        prefixes.count(chain(filler("system", 8500), f"the {guess} secret"))
        rows.append(top(prefixes, 1.0))
    assert rows[0] == rows[1]


def test_names_are_hashed_with_a_key() -> None:
    names = []
    for key in (b"one", b"two"):
        prefixes = SharedPrefixes(key=key, now=0.0)
        for _ in range(5):
            prefixes.count(chain(filler("system", 9000)))
        (row,) = top(prefixes, 1.0)
        names.append(row.name)
    assert names[0] != names[1]
    assert all(len(name) == 8 for name in names)


def test_old_traffic_fades() -> None:
    prefixes = SharedPrefixes(key=b"k", now=0.0)
    for _ in range(40):
        prefixes.count(chain(filler("system", 9000)))
    assert len(top(prefixes, 1.0)) == 1
    assert top(prefixes, 6 * HALF_LIFE) == []


def test_the_checkpoint_is_the_last_one_up_to_that_length() -> None:
    prefixes = SharedPrefixes(key=b"k", now=0.0)
    shared = chain(filler("system", 8192))
    for k in range(5):
        prefixes.count(chain(filler("system", 8192), f"question {k}" * 100))
    (row,) = top(prefixes, 1.0)
    assert row.hashes == shared.hashes


def test_a_beginning_of_very_many_checkpoints_is_not_kept() -> None:
    prefixes = SharedPrefixes(key=b"k", now=0.0)
    messages = chain(*(f"message {k}" for k in range(3 * MOST_CHECKPOINTS)))
    for _ in range(5):
        prefixes.count(messages)
    rows = top(prefixes, 1.0)
    assert rows
    assert all(len(row.hashes) <= MOST_CHECKPOINTS for row in rows)


def test_counting_is_a_few_entries_for_the_longest_prompt() -> None:
    prefixes = SharedPrefixes(key=b"k", now=0.0)
    prefixes.count(chain(filler("long", 400_000)))
    assert len(prefixes._hitters.hitters()) <= 13
    assert LENGTHS[-1] > 3_000_000
