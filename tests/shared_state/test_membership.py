"""Every engine is scraped by one live picker."""

from __future__ import annotations

from warmroute.shared_state.membership import MOST_OWNERS, MOST_PICKERS, SILENCE, Membership

ENDPOINTS = [f"default/pod-{k}" for k in range(300)]
PICKERS = [11, 22, 33]


def members(now: float = 0.0) -> dict[int, Membership]:
    """Each picker's view; all have heard of each other."""
    views = {own: Membership(own) for own in PICKERS}
    for view in views.values():
        for picker in PICKERS:
            view.heard(picker, now)
    return views


def owners(views: dict[int, Membership]) -> list[list[int]]:
    return [[own for own, view in views.items() if view.owns(endpoint)] for endpoint in ENDPOINTS]


def test_each_endpoint_has_one_owner_and_shares_are_about_equal() -> None:
    found = owners(members())
    assert all(len(each) == 1 for each in found)
    assert all(60 < sum(each == [own] for each in found) < 140 for own in PICKERS)


def test_a_picker_that_leaves_moves_its_own_endpoints_only() -> None:
    views = members()
    before = owners(views)
    del views[33]
    for view in views.values():
        view.left(33)
    for was, is_now in zip(before, owners(views), strict=True):
        assert len(is_now) == 1
        assert is_now == was or was == [33]


def test_a_picker_that_joins_takes_its_share_from_those_that_were_there() -> None:
    view = Membership(11)
    assert all(view.owns(endpoint) for endpoint in ENDPOINTS)
    view.heard(22, 0.0)
    assert 100 < sum(view.owns(endpoint) for endpoint in ENDPOINTS) < 200


def test_a_silent_picker_is_taken_over() -> None:
    views = members()
    views[11].heard(22, SILENCE)
    views[11].expire(SILENCE + 0.1)
    assert views[11].alive == 2
    assert len([endpoint for endpoint in ENDPOINTS if views[11].owns(endpoint)]) > 100


def test_pickers_that_fall_silent_together_are_taken_over_together() -> None:
    views = members()
    views[11].expire(SILENCE + 0.1)
    assert views[11].alive == 1
    assert all(views[11].owns(endpoint) for endpoint in ENDPOINTS)


def test_an_old_batch_does_not_make_a_picker_older() -> None:
    view = Membership(11)
    view.heard(22, 10.0)
    view.heard(22, 5.0)
    view.expire(10.0 + SILENCE)
    assert view.alive == 2


def test_alone_it_owns_everything() -> None:
    assert all(Membership(11).owns(endpoint) for endpoint in ENDPOINTS)


def test_members_are_bounded() -> None:
    view = Membership(0)
    for picker in range(2 * MOST_PICKERS):
        view.heard(picker, 0.0)
    assert view.alive == MOST_PICKERS + 1
    assert not view.has(0), "itself is not another one"
    view.heard(1, SILENCE)
    view.expire(SILENCE + 0.1)
    assert view.alive == 2, "members are still heard"


def test_endpoints_that_have_left_are_not_remembered_for_ever() -> None:
    members = Membership(1)
    for k in range(3 * MOST_OWNERS):
        assert members.owns(f"ns/pod-{k}")
    assert len(members._owners) <= MOST_OWNERS
