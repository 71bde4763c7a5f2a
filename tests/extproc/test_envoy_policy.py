"""Values for Envoy against those of the picker."""

from __future__ import annotations

from warmroute.extproc import envoy_policy
from warmroute.settings import Settings


def test_envoy_lets_as_many_requests_through_as_the_picker_takes() -> None:
    assert Settings().max_streams <= envoy_policy.MAX_REQUESTS


def test_envoy_waits_longer_for_a_picker_than_it_pauses_between_two_tries() -> None:
    base, longest = envoy_policy.PICKER_BACK_OFF
    assert 0 < base < longest < 1000 * envoy_policy.MESSAGE_TIMEOUT
