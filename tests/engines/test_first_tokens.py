"""How many requests have no token yet, from counters that drift."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from warmroute.engines.rates import FirstTokens


def test_what_is_being_prefilled_awaits_its_first_token_too() -> None:
    assert FirstTokens().awaiting(first_tokens=107, finished=100, running=9, waiting=2) == 4


def test_all_decode() -> None:
    assert FirstTokens().awaiting(first_tokens=109, finished=100, running=9, waiting=0) == 0


def test_clients_that_go_away_while_their_answers_come_are_found_out() -> None:
    counts = FirstTokens()
    assert counts.awaiting(first_tokens=20, finished=10, running=7, waiting=0) == 0  # three went away
    assert counts.awaiting(first_tokens=22, finished=10, running=10, waiting=1) == 2


def test_an_idle_engine_clears_the_books() -> None:
    counts = FirstTokens()
    counts.awaiting(first_tokens=20, finished=10, running=30, waiting=0)
    assert counts.awaiting(first_tokens=30, finished=15, running=0, waiting=0) == 0
    assert counts.awaiting(first_tokens=30, finished=15, running=4, waiting=0) == 4


def test_requests_that_end_without_a_first_token_do_not_make_up_others() -> None:
    counts = FirstTokens()
    assert counts.awaiting(first_tokens=10, finished=15, running=4, waiting=0) == 4
    assert counts.awaiting(first_tokens=14, finished=15, running=4, waiting=0) == 0


def test_preempted_requests_wait_again_and_nothing_is_forgotten() -> None:
    counts = FirstTokens()
    assert counts.awaiting(first_tokens=10, finished=0, running=7, waiting=3) == 3
    assert counts.awaiting(first_tokens=10, finished=0, running=10, waiting=0) == 0


def test_a_restart_begins_anew() -> None:
    counts = FirstTokens()
    counts.awaiting(first_tokens=20, finished=10, running=0, waiting=0)
    counts.interrupt()
    assert counts.awaiting(first_tokens=3, finished=1, running=4, waiting=0) == 2


@given(
    st.lists(
        st.tuples(st.sampled_from(["come", "token", "finish", "vanish"]), st.integers(1, 4)), min_size=1, max_size=60
    )
)
def test_it_errs_by_no_more_than_went_away_since_all_decoded(events: list[tuple[str, int]]) -> None:
    counts = FirstTokens()
    first_tokens = finished = queued = decoding = vanished = 0
    for kind, most in events:
        if kind == "come":
            queued += most
        elif kind == "token":
            many = min(most, queued)
            queued, decoding, first_tokens = queued - many, decoding + many, first_tokens + many
        elif kind == "finish":
            many = min(most, decoding)
            decoding, finished = decoding - many, finished + many
        else:
            many = min(most, decoding)
            decoding, vanished = decoding - many, vanished + many
        if not queued:
            vanished = 0
        awaiting = counts.awaiting(first_tokens, finished, running=queued + decoding, waiting=0)
        assert queued - vanished <= awaiting <= queued
