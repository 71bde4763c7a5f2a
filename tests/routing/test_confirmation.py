"""Which prompts an engine's counters confirm, and how far its cache is trusted."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.pool.endpoint import EngineState
from warmroute.prefix.chain import Chain
from warmroute.routing.confirmation import (
    DISTRUST_BELOW,
    LEAST_FACTOR,
    MOST_OPEN,
    NOTHING_FOUND_PROMPTS,
    NOTHING_FOUND_TOKENS,
    SETTLING,
    WINDOW_PROMPTS,
    WINDOW_TOKENS,
    Confirmation,
    SentPrompt,
    Verdict,
)


def chain(number: int) -> Chain:
    return Chain((number,), (100,), 100)


def page(at: float, lookups: float | None, hits: float = 0.0, *, running: int = 1) -> EngineState:
    return EngineState(
        observed_at=at,
        running=running,
        waiting=0,
        kv_usage=0.0,
        prefix_queries_total=lookups,
        prefix_hits_total=None if lookups is None else hits,
    )


def send(
    confirmation: Confirmation,
    tokens: float,
    chain: Chain | None,
    *,
    at: float,
    cached: float = 0.0,
    most: int = 100_000,
) -> SentPrompt:
    return confirmation.sent(tokens, cached, chain, at, most_checkpoints=most)


def begun() -> Confirmation:
    confirmation = Confirmation()
    assert list(confirmation.observe(page(0.0, 0.0))) == []
    return confirmation


def test_a_prompt_is_accepted_when_its_tokens_are_looked_up() -> None:
    confirmation = begun()
    send(confirmation, 1000, chain(1), at=1.0)
    send(confirmation, 2000, chain(2), at=1.0)
    assert list(confirmation.observe(page(2.0, 500))) == []
    assert list(confirmation.observe(page(3.0, 1000))) == [Verdict(chain(1), True)]
    assert list(confirmation.observe(page(4.0, 3000))) == [Verdict(chain(2), True)]


def test_a_prompt_that_was_estimated_too_long_takes_no_lookups_of_the_next() -> None:
    confirmation = begun()
    send(confirmation, 1000, chain(1), at=1.0)
    send(confirmation, 1000, chain(2), at=1.0)
    assert list(confirmation.observe(page(2.0, 800))) == [Verdict(chain(1), True)]
    send(confirmation, 100, chain(3), at=2.5)
    assert list(confirmation.observe(page(3.0, 1600))) == [Verdict(chain(2), True)]
    assert confirmation.unproven == 0


def test_an_idle_engine_that_has_not_looked_a_prompt_up_has_rejected_it() -> None:
    confirmation = begun()
    send(confirmation, 1000, chain(1), at=1.0)
    assert list(confirmation.observe(page(1.0 + SETTLING - 0.1, 0, running=0))) == []
    assert list(confirmation.observe(page(1.0 + SETTLING, 0, running=0))) == [Verdict(chain(1), False)]


@pytest.mark.parametrize(("running", "waiting"), [(3, 0), (2, 2), (0, 1)])
def test_a_busy_engine_decides_nothing_until_it_has_looked_the_prompt_up(running: int, waiting: int) -> None:
    confirmation = begun()
    send(confirmation, 1000, chain(1), at=1.0)
    assert list(confirmation.observe(dataclasses.replace(page(50.0, 0, running=running), waiting=waiting))) == []


def test_lookups_before_a_prompt_was_sent_do_not_confirm_it() -> None:
    confirmation = begun()
    assert list(confirmation.observe(page(1.0, 1_000_000))) == []
    assert confirmation.unproven == 0
    send(confirmation, 1000, chain(1), at=2.0)
    assert list(confirmation.observe(page(3.0, 1_000_100))) == []


def test_without_a_counter_nothing_can_be_confirmed() -> None:
    confirmation = Confirmation()
    assert not confirmation.counts
    list(confirmation.observe(page(0.0, None)))
    assert not confirmation.counts


def test_a_counter_that_comes_and_goes_decides_nothing_meanwhile() -> None:
    confirmation = begun()
    send(confirmation, 1000, chain(1), at=1.0)
    for at, lookups in ((2.0, None), (3.0, 5000)):
        assert list(confirmation.observe(page(at, lookups))) == []
    assert list(confirmation.observe(page(4.0, 6000))) == [Verdict(chain(1), True)]


def test_a_counter_that_begins_anew_counts_from_there() -> None:
    confirmation = begun()
    list(confirmation.observe(page(1.0, 50_000)))
    send(confirmation, 1000, chain(1), at=1.5)
    list(confirmation.observe(page(2.0, 100)))
    assert list(confirmation.observe(page(3.0, 1100))) == [Verdict(chain(1), True)]


def test_an_engine_that_counts_no_hits_is_trusted() -> None:
    """It may count them later, and then from the beginning again."""
    confirmation = begun()
    tokens = 2 * WINDOW_TOKENS / WINDOW_PROMPTS
    for turn in range(3 * WINDOW_PROMPTS):
        hits = {1: 0.8 * tokens, 2: 1.6 * tokens, 3: 0.0}.get(turn - 2 * WINDOW_PROMPTS)
        list(confirmation.observe(dataclasses.replace(page(float(turn), turn * tokens), prefix_hits_total=hits)))
        send(confirmation, tokens, None, at=turn + 0.5, cached=0.8 * tokens)
        if turn <= 2 * WINDOW_PROMPTS:
            assert (confirmation.windows, confirmation.factor) == (0, 1.0)
    assert confirmation.last_window is not None
    assert confirmation.last_window.measured >= 0


def test_the_oldest_of_many_prompts_stay_undecided() -> None:
    confirmation = begun()
    for number in range(MOST_OPEN + 3):
        send(confirmation, 1000, chain(number), at=100.0)
    decided = list(confirmation.observe(page(200.0, 0, running=0)))
    assert decided == [Verdict(chain(number), False) for number in range(3, MOST_OPEN + 3)]


def test_the_chains_that_wait_are_bounded_together() -> None:
    confirmation = begun()
    for number in range(10):
        send(confirmation, 1000, Chain(range(number, number + 30), range(30), 30_000), at=100.0, most=100)
    assert len(list(confirmation.observe(page(200.0, 0, running=0)))) == 3


def test_a_prompt_can_be_withdrawn_after_the_cache_was_emptied() -> None:
    confirmation = begun()
    failed = send(confirmation, 1000, chain(1), at=1.0, cached=900)
    confirmation.forget()
    confirmation.withdraw(failed)
    assert list(confirmation.observe(page(50.0, 0, running=0))) == []


def test_of_two_equal_prompts_the_one_that_failed_is_withdrawn() -> None:
    confirmation = begun()
    first, second = (send(confirmation, 1000, chain(1), at=1.0) for _ in range(2))
    confirmation.withdraw(second)
    confirmation.withdraw(second)
    assert list(confirmation.observe(page(2.0, 1000))) == [Verdict(chain(1), True)]
    assert first != second


def test_withdrawn_prompts_leave_room_for_others() -> None:
    confirmation = begun()
    for number in range(10):
        confirmation.withdraw(send(confirmation, 1000, chain(number), at=1.0, most=2))
    send(confirmation, 1000, chain(10), at=1.0, most=2)
    assert list(confirmation.observe(page(2.0, 1000))) == [Verdict(chain(10), True)]


def test_nothing_is_expected_of_prompts_that_wait_when_the_cache_is_emptied() -> None:
    confirmation = begun()
    for _ in range(NOTHING_FOUND_PROMPTS):
        send(confirmation, NOTHING_FOUND_TOKENS, None, at=1.0, cached=NOTHING_FOUND_TOKENS)
    confirmation.forget()
    list(confirmation.observe(page(2.0, NOTHING_FOUND_PROMPTS * NOTHING_FOUND_TOKENS)))
    assert confirmation.windows == 0


def test_a_prompt_that_was_not_served_takes_no_lookups_of_others() -> None:
    confirmation = begun()
    failed = send(confirmation, 100_000, chain(1), at=1.0, cached=100_000)
    send(confirmation, 1000, chain(2), at=1.1)
    confirmation.withdraw(failed)
    confirmation.withdraw(failed)
    assert list(confirmation.observe(page(2.0, 1000))) == [Verdict(chain(2), True)]


def test_accepted_prompts_prove_more_than_their_own_tokens_and_rejected_ones_nothing() -> None:
    confirmation = begun()
    send(confirmation, 1000, chain(1), at=1.0)
    list(confirmation.observe(page(3.0, 0, running=0)))
    assert confirmation.unproven == 1000
    send(confirmation, 2000, chain(2), at=4.0)
    list(confirmation.observe(page(5.0, 2000)))
    assert confirmation.unproven == 500
    list(confirmation.observe(page(6.0, 2400)))
    assert confirmation.unproven == 100


def test_what_the_engine_holds_already_needs_no_proof() -> None:
    confirmation = begun()
    send(confirmation, 1000, chain(1), at=1.0, cached=900)
    assert confirmation.unproven == 100
    send(confirmation, 1000, chain(2), at=1.1, cached=1200)
    assert confirmation.unproven == 100
    list(confirmation.observe(page(2.0, 2000)))
    assert confirmation.unproven == 0


def test_a_prompt_that_becomes_known_after_its_lookup_is_accepted_once() -> None:
    confirmation = begun()
    send(confirmation, 1000, chain(1), at=0.1)
    list(confirmation.observe(page(0.5, 3000)))
    assert not confirmation.settle_late(3000, 0, at=0.2)  # no lookups of that many are left
    assert confirmation.settle_late(2000, 0, at=0.2)
    assert not confirmation.settle_late(2000, 0, at=0.2)
    assert confirmation.settle_late(2000, 0, at=0.5 - SETTLING)  # nobody knows


def test_each_lookup_explains_one_late_prompt() -> None:
    confirmation = begun()
    list(confirmation.observe(page(0.5, 1000)))
    list(confirmation.observe(page(0.6, 3000)))
    assert confirmation.settle_late(1500, 0, at=0.2)  # the first scrape's, and 500 of the second one's
    assert not confirmation.settle_late(2100, 0, at=0.2)
    assert confirmation.settle_late(1500, 0, at=0.2)
    assert not confirmation.settle_late(100, 0, at=0.2)


def test_a_late_prompt_that_was_estimated_too_long_takes_all_lookups() -> None:
    confirmation = begun()
    list(confirmation.observe(page(0.5, 1000)))
    assert confirmation.settle_late(1200, 0, at=0.2)
    assert not confirmation.settle_late(10, 0, at=0.2)


def test_late_prompts_count_in_the_window() -> None:
    confirmation = begun()
    tokens = 2 * WINDOW_TOKENS / WINDOW_PROMPTS
    for number in range(1, WINDOW_PROMPTS + 1):
        list(confirmation.observe(page(float(number), number * tokens, 0.4 * number * tokens)))
        assert confirmation.windows == 0
        assert confirmation.settle_late(tokens, 0.8 * tokens, at=number - 0.1)
    list(confirmation.observe(page(number + 0.1, number * tokens, 0.4 * number * tokens)))
    assert confirmation.last_window == pytest.approx((0.8, 0.4, 0.0))


def test_a_prompt_that_becomes_known_before_its_lookup_waits_for_it() -> None:
    confirmation = begun()
    list(confirmation.observe(page(0.5, 3000)))
    assert not confirmation.settle_late(2000, 0, at=0.6)
    assert not Confirmation().settle_late(2000, 0, at=0.6)


def test_lookups_that_no_prompt_explains_are_kept_for_a_second() -> None:
    confirmation = begun()
    list(confirmation.observe(page(0.5, 3000)))
    list(confirmation.observe(page(0.6, 4000)))
    list(confirmation.observe(page(0.5 + SETTLING, 4000)))
    assert not confirmation.settle_late(2000, 0, at=0.55)
    assert confirmation.settle_late(1000, 0, at=0.55)


def test_the_oldest_lookups_explain_a_late_prompt() -> None:
    confirmation = begun()
    list(confirmation.observe(page(0.5, 1000)))
    list(confirmation.observe(page(0.6, 3000)))
    assert confirmation.settle_late(2000, 0, at=0.2)
    list(confirmation.observe(page(0.5 + SETTLING, 3000)))
    assert confirmation.settle_late(1000, 0, at=0.55)


@given(
    st.lists(
        st.tuples(st.floats(1, 1e6), st.floats(0, 1e6), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60
    )
)
def test_no_more_tokens_are_accepted_than_were_looked_up(steps: list[tuple[float, float, int, int]]) -> None:
    confirmation = begun()
    lookups = accepted = 0.0
    tokens_of: dict[int, float] = {}
    for number, (tokens, looked_up, sending, running) in enumerate(steps):
        if sending == 1:
            tokens_of[number] = tokens
            send(confirmation, tokens, chain(number), at=float(number))
        elif sending == 2 and confirmation.settle_late(tokens, 0.0, at=number - 0.5):
            accepted += tokens
        lookups += looked_up
        for verdict in confirmation.observe(page(number + 0.5, lookups, running=running)):
            if verdict.accepted and isinstance(verdict.claim, Chain):
                accepted += tokens_of.pop(verdict.claim.hashes[0])
    assert 0.74 * accepted <= lookups


def windows(confirmation: Confirmation, count: int, *, expected: float, measured: float) -> None:
    """``count`` windows in which these shares of the prompts were expected and found in the cache."""
    tokens = 2 * WINDOW_TOKENS / WINDOW_PROMPTS
    lookups = hits = 0.0
    list(confirmation.observe(page(0.0, 0.0)))
    for turn in range(count * WINDOW_PROMPTS):
        send(confirmation, tokens, None, at=float(turn), cached=expected * tokens)
        lookups, hits = lookups + tokens, hits + measured * tokens
        list(confirmation.observe(page(turn + 0.5, lookups, hits)))


@pytest.mark.parametrize(("measured", "factor"), [(0.8, 1.0), (0.4, 1.0), (0.0, pytest.approx(0.05, abs=0.03))])
def test_an_engine_that_holds_less_than_expected_is_trusted_less(measured: float, factor: float) -> None:
    confirmation = begun()
    confirmation.full = True
    windows(confirmation, 6, expected=0.8, measured=measured)
    assert confirmation.factor == factor


def test_an_engine_with_room_that_finds_half_of_what_it_keeps_is_believed_to_hold_half() -> None:
    confirmation = begun()
    windows(confirmation, 8, expected=0.8, measured=0.4)
    assert confirmation.factor == pytest.approx(0.5, abs=0.01)


def test_hits_that_end_at_once_show_an_emptied_cache_and_then_one_that_keeps_nothing() -> None:
    confirmation = begun()
    windows(confirmation, 3, expected=0.8, measured=0.8)
    windows(confirmation, 1, expected=0.8, measured=0.0)
    assert (confirmation.emptied, confirmation.factor) == (True, 1.0)
    confirmation.forget()
    assert not confirmation.emptied
    windows(confirmation, 1, expected=0.8, measured=0.0)
    assert (confirmation.emptied, confirmation.factor) == (False, LEAST_FACTOR)


def test_a_window_ends_early_when_nothing_is_found() -> None:
    confirmation = begun()
    lookups = 0.0
    for turn in range(NOTHING_FOUND_PROMPTS):
        assert confirmation.factor == 1.0
        tokens = NOTHING_FOUND_TOKENS / NOTHING_FOUND_PROMPTS
        send(confirmation, tokens, None, at=float(turn), cached=tokens)
        lookups += tokens
        list(confirmation.observe(page(turn + 0.5, lookups)))
    assert confirmation.factor == LEAST_FACTOR


def test_a_few_long_prompts_that_are_not_found_say_nothing() -> None:
    confirmation = begun()
    for turn in range(1, NOTHING_FOUND_PROMPTS):
        send(confirmation, 2 * NOTHING_FOUND_TOKENS, None, at=turn - 0.5, cached=2 * NOTHING_FOUND_TOKENS)
        list(confirmation.observe(page(float(turn), turn * 2 * NOTHING_FOUND_TOKENS)))
    assert (confirmation.windows, confirmation.factor) == (0, 1.0)


def test_a_window_of_short_prompts_goes_on() -> None:
    confirmation = begun()
    tokens = WINDOW_TOKENS / WINDOW_PROMPTS / 2
    for turn in range(2 * WINDOW_PROMPTS + 1):
        assert confirmation.windows == 0
        list(confirmation.observe(page(float(turn), turn * tokens, 0.8 * turn * tokens)))
        send(confirmation, tokens, None, at=turn + 0.5, cached=0.8 * tokens)
    assert confirmation.windows == 1


def test_prompts_that_wait_while_the_cache_is_emptied_are_not_expected_to_be_found() -> None:
    confirmation = begun()
    windows(confirmation, 1, expected=0.8, measured=0.8)
    lookups = WINDOW_TOKENS * 2
    for _ in range(WINDOW_PROMPTS):
        send(confirmation, WINDOW_TOKENS, None, at=100.0, cached=WINDOW_TOKENS)
    confirmation.forget()
    list(confirmation.observe(page(101.0, lookups + WINDOW_PROMPTS * WINDOW_TOKENS, 0.8 * lookups)))
    assert (confirmation.emptied, confirmation.trust) == (False, 1.0)


@pytest.mark.parametrize(("rejected", "trusted"), [(0.0, False), (0.04, False), (1000.0, True)])
def test_rejected_prompts_do_not_lower_trust_where_the_page_counts_them(rejected: float, trusted: bool) -> None:
    """Nine of ten requests are prompts that would have been found and are not looked up; the engine is never idle."""
    confirmation = Confirmation()
    lookups = 0.0
    for turn in range(200):
        refused = None if not rejected else rejected * turn
        list(confirmation.observe(dataclasses.replace(page(turn, lookups), rejected_responses_total=refused)))
        for _ in range(9):
            send(confirmation, 5000, None, at=turn + 0.5, cached=5000)
        send(confirmation, 5000, None, at=turn + 0.5)
        lookups += 5000
    assert (confirmation.factor == 1.0) is trusted


def test_the_ratios_of_the_last_window_are_kept() -> None:
    confirmation = begun()
    assert confirmation.last_window is None
    windows(confirmation, 1, expected=0.8, measured=0.4)
    assert confirmation.last_window == pytest.approx((0.8, 0.4, 0.0))
    windows(confirmation, 1, expected=0.0, measured=3.0)
    assert confirmation.last_window == pytest.approx((0.0, 1.0, 0.0))
    assert confirmation.windows == 2


def test_hits_in_a_second_tier_are_kept_beside_all_hits() -> None:
    confirmation = Confirmation()
    tokens = 2 * WINDOW_TOKENS / WINDOW_PROMPTS
    for turn in range(WINDOW_PROMPTS + 1):
        scraped = page(float(turn), turn * tokens, 0.5 * turn * tokens)
        list(confirmation.observe(dataclasses.replace(scraped, tier_hits_total=0.25 * turn * tokens)))
        send(confirmation, tokens, None, at=turn + 0.5, cached=0.75 * tokens)
    assert confirmation.last_window == pytest.approx((0.75, 0.5, 0.25))


def test_trust_returns_when_the_hits_do() -> None:
    confirmation = begun()
    windows(confirmation, 6, expected=0.8, measured=0.05)
    assert confirmation.factor < DISTRUST_BELOW
    confirmation.reset()
    windows(confirmation, 6, expected=0.8, measured=0.8)
    assert confirmation.factor == 1.0


def test_an_engine_that_finds_more_than_expected_is_trusted_as_one_that_finds_all() -> None:
    confirmation = begun()
    windows(confirmation, 2, expected=0.4, measured=0.8)
    assert confirmation.trust == 1.0


def test_cold_traffic_says_nothing_of_trust() -> None:
    confirmation = begun()
    windows(confirmation, 6, expected=0.01, measured=0.0)
    assert confirmation.factor == 1.0
