"""The pool against a naive model of it, and what its listeners hear."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from warmroute.pool.endpoint import Endpoint, EndpointSpec, EngineState, ServedModels
from warmroute.pool.pool import ONE_RESTART_SECONDS, Pool, PoolListener

NAMES = st.sampled_from(["a", "b", "c"])


def spec(name: str = "a", *, address: str = "10.0.0.1", incarnation: str = "") -> EndpointSpec:
    return EndpointSpec("default", name, address, 8000, incarnation=incarnation)


def state(at: float = 0.0, *, sleeping: bool = False) -> EngineState:
    return EngineState(observed_at=at, running=1, waiting=0, kv_usage=0.5, sleeping=sleeping)


class Recorder(PoolListener):
    """Writes down what it hears, and keeps a copy of the pool from that alone."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.members: dict[str, Endpoint] = {}
        self.known_available: dict[str, bool] = {}
        self.known_states: dict[str, EngineState | None] = {}

    def heard(self) -> list[tuple[str, str]]:
        events, self.events = self.events, []
        return events

    def endpoint_added(self, endpoint: Endpoint, now: float) -> None:
        assert endpoint.id not in self.members
        self.members[endpoint.id] = endpoint
        self.known_states[endpoint.id] = None
        self.known_available[endpoint.id] = endpoint.available
        self.events.append(("added", endpoint.spec.name))

    def endpoint_removed(self, endpoint: Endpoint, now: float) -> None:
        assert self.members.pop(endpoint.id) is endpoint
        self.events.append(("removed", endpoint.spec.name))

    def endpoint_changed(self, endpoint: Endpoint, now: float) -> None:
        assert self.members[endpoint.id] is endpoint
        self.known_available[endpoint.id] = endpoint.available
        self.events.append(("changed", endpoint.spec.name))

    def endpoint_observed(self, endpoint: Endpoint, now: float) -> None:
        assert self.members[endpoint.id] is endpoint
        self.known_states[endpoint.id] = endpoint.state
        self.events.append(("observed", endpoint.spec.name))

    def endpoint_restarted(self, endpoint: Endpoint, now: float) -> None:
        assert self.members[endpoint.id] is endpoint
        self.known_states[endpoint.id] = None
        self.events.append(("restarted", endpoint.spec.name))


class PoolMachine(RuleBasedStateMachine):
    """Any sequence of what discovery and engines do; the model is three dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pool = Pool(retention=10.0)
        self.recorder = Recorder()
        self.pool.subscribe(self.recorder, self.now)
        self.wanted: dict[str, EndpointSpec] = {}
        self.gone: dict[str, float] = {}
        self.forgotten: list[Endpoint] = []

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=NAMES, address=st.sampled_from(["10.0.0.1", "10.0.0.2"]), uid=st.sampled_from(["", "u", "v"]))
    def upsert(self, name: str, address: str, uid: str) -> None:
        new = spec(name, address=address, incarnation=uid)
        old = self.pool.endpoints.get(new.id)
        restarts = old is not None and (
            old.spec.address != address or bool(uid and old.spec.incarnation and uid != old.spec.incarnation)
        )
        self.recorder.heard()
        endpoint = self.pool.upsert(new, self.now)
        assert (("restarted", name) in self.recorder.heard()) == restarts
        assert endpoint is (old or endpoint)
        self.wanted[new.id] = new
        self.gone.pop(new.id, None)

    @rule(names=st.lists(NAMES))
    def replace_all(self, names: list[str]) -> None:
        new = {s.id: s for s in map(spec, names)}
        self.pool.replace(new.values(), self.now)
        for missing in self.wanted.keys() - new.keys():
            self.gone[missing] = self.now
        for present in new:
            self.gone.pop(present, None)
        self.wanted = new
        assert self.pool.synced

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        endpoint_id = spec(name).id
        self.pool.remove(endpoint_id, self.now)
        if self.wanted.pop(endpoint_id, None) is not None:
            self.gone[endpoint_id] = self.now

    @rule()
    def expire(self) -> None:
        before = dict(self.pool.endpoints)
        self.pool.expire(self.now)
        self.gone = {i: at for i, at in self.gone.items() if self.now - at < 10.0}
        self.forgotten += [e for i, e in before.items() if i not in self.pool.endpoints]

    @rule(name=NAMES, kind=st.sampled_from(["observed", "sleeping", "unreachable", "reachable", "restarted"]))
    def engine_tells(self, name: str, kind: str) -> None:
        endpoint = self.pool.endpoints.get(spec(name).id)
        if endpoint is not None:
            self._tell(endpoint, kind)

    @rule(kind=st.sampled_from(["observed", "unreachable", "reachable", "restarted"]))
    def engine_tells_too_late(self, kind: str) -> None:
        if self.forgotten:
            self.recorder.heard()
            self._tell(self.forgotten[-1], kind)
            assert self.recorder.heard() == []

    def _tell(self, endpoint: Endpoint, kind: str) -> None:
        if kind in {"observed", "sleeping"}:
            self.pool.observed(endpoint, state(self.now, sleeping=kind == "sleeping"), self.now)
        else:
            getattr(self.pool, kind)(endpoint, self.now)

    @invariant()
    def members_are_wanted_or_remembered(self) -> None:
        assert self.pool.endpoints.keys() == self.wanted.keys() | self.gone.keys()
        for endpoint_id, endpoint in self.pool.endpoints.items():
            assert endpoint.gone_at == self.gone.get(endpoint_id)
            assert endpoint.ready == (endpoint_id in self.wanted)
            if endpoint_id in self.wanted:
                assert endpoint.spec == self.wanted[endpoint_id]
                assert endpoint.target == endpoint.spec.target

    @invariant()
    def listeners_know_all(self) -> None:
        assert self.recorder.members == self.pool.endpoints
        for endpoint in self.pool.endpoints.values():
            assert self.recorder.known_states[endpoint.id] is endpoint.state
            assert self.recorder.known_available[endpoint.id] == endpoint.available


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(stateful_step_count=30)


def test_a_late_listener_hears_of_members_and_their_state() -> None:
    pool, recorder = Pool(), Recorder()
    pool.upsert(spec("a"), 0.0)
    pool.observed(pool.upsert(spec("b"), 0.0), state(), 1.0)
    pool.subscribe(recorder, 2.0)
    assert recorder.heard() == [("added", "a"), ("added", "b"), ("observed", "b")]


def test_a_flapping_member_keeps_its_identity_and_state() -> None:
    pool, recorder = Pool(retention=60.0), Recorder()
    pool.subscribe(recorder, 0.0)
    endpoint = pool.upsert(spec(), 0.0)
    pool.observed(endpoint, state(), 1.0)
    pool.remove(endpoint.id, 2.0)
    assert not endpoint.available
    pool.expire(61.9)
    assert pool.upsert(spec(), 61.95) is endpoint
    assert endpoint.available
    assert endpoint.state == state()
    assert recorder.heard() == [("added", "a"), ("observed", "a"), ("changed", "a"), ("changed", "a")]


def test_a_new_address_is_a_restart_and_reachable_until_proven_otherwise() -> None:
    pool, recorder = Pool(), Recorder()
    pool.subscribe(recorder, 0.0)
    endpoint = pool.upsert(spec(), 0.0)
    pool.unreachable(endpoint, 1.0)
    recorder.heard()
    pool.upsert(spec(address="10.0.0.9"), 2.0)
    assert ("restarted", "a") in recorder.heard()
    assert endpoint.available
    assert endpoint.target == "10.0.0.9:8000"


def test_an_engine_that_slept_and_restarted_is_available_again() -> None:
    pool, recorder = Pool(), Recorder()
    pool.subscribe(recorder, 0.0)
    endpoint = pool.upsert(spec(), 0.0)
    pool.observed(endpoint, state(sleeping=True), 1.0)
    assert not endpoint.available
    recorder.heard()
    pool.restarted(endpoint, 2.0)
    assert endpoint.available
    assert recorder.heard() == [("restarted", "a"), ("changed", "a")]


def restarts(recorder: Recorder) -> int:
    return recorder.heard().count(("restarted", "a"))


def test_two_signs_of_one_restart_are_one() -> None:
    """The metrics page shows it first, the pod's status later."""
    pool, recorder = Pool(), Recorder()
    pool.subscribe(recorder, 0.0)
    endpoint = pool.upsert(spec(incarnation="1"), 0.0)
    pool.restarted(endpoint, 10.0)
    assert restarts(recorder) == 1
    pool.observed(endpoint, state(11.0), 11.0)
    pool.unreachable(endpoint, 11.5)
    pool.upsert(spec(incarnation="2"), 12.0)
    assert restarts(recorder) == 0
    assert endpoint.state is not None
    assert endpoint.reachable


def test_the_pods_status_may_come_first() -> None:
    pool, recorder = Pool(), Recorder()
    pool.subscribe(recorder, 0.0)
    endpoint = pool.upsert(spec(incarnation="1"), 0.0)
    pool.upsert(spec(incarnation="2"), 10.0)
    pool.restarted(endpoint, 11.0)
    assert restarts(recorder) == 1


def test_a_second_sign_of_one_kind_is_a_second_restart() -> None:
    pool, recorder = Pool(), Recorder()
    pool.subscribe(recorder, 0.0)
    endpoint = pool.upsert(spec(incarnation="1"), 0.0)
    for at in (10.0, 13.0):
        pool.restarted(endpoint, at)
        pool.upsert(spec(incarnation=f"{at}"), at + 1)
    assert restarts(recorder) == 2


def test_a_third_sign_is_a_second_restart() -> None:
    pool, recorder = Pool(), Recorder()
    pool.subscribe(recorder, 0.0)
    endpoint = pool.upsert(spec(incarnation="1"), 0.0)
    pool.restarted(endpoint, 10.0)
    pool.upsert(spec(incarnation="2"), 11.0)
    assert restarts(recorder) == 1
    pool.upsert(spec(incarnation="3"), 12.0)
    assert restarts(recorder) == 1, "one more"


def test_a_state_that_no_engine_can_have_shows_that_the_engine_answers() -> None:
    pool = Pool()
    endpoint = pool.upsert(spec(), 0.0)
    pool.unreachable(endpoint, 1.0)
    pool.observed(endpoint, replace(state(2.0), kv_usage=2.0), 2.0)
    assert endpoint.reachable
    assert endpoint.state is None


def test_an_equal_list_of_models_changes_nothing() -> None:
    pool, recorder = Pool(), Recorder()
    pool.subscribe(recorder, 0.0)
    endpoint = pool.upsert(spec(), 0.0)
    for _ in range(2):
        pool.serves(endpoint, ServedModels(frozenset({"m"})), 1.0)
    assert recorder.heard() == [("added", "a"), ("changed", "a")]


def test_a_sign_of_another_kind_that_comes_late_is_a_second_restart() -> None:
    pool, recorder = Pool(), Recorder()
    pool.subscribe(recorder, 0.0)
    endpoint = pool.upsert(spec(incarnation="1"), 0.0)
    pool.restarted(endpoint, 10.0)
    pool.upsert(spec(incarnation="2"), 10.0 + ONE_RESTART_SECONDS)
    assert restarts(recorder) == 2


def test_another_address_is_another_process_whatever_the_page_has_shown() -> None:
    pool, recorder = Pool(), Recorder()
    pool.subscribe(recorder, 0.0)
    endpoint = pool.upsert(spec(), 0.0)
    pool.restarted(endpoint, 10.0)
    pool.upsert(spec(address="10.0.0.9"), 11.0)
    assert restarts(recorder) == 2


def test_only_a_change_is_told() -> None:
    pool, recorder = Pool(), Recorder()
    pool.subscribe(recorder, 0.0)
    endpoint = pool.upsert(spec(), 0.0)
    recorder.heard()
    pool.upsert(spec(), 1.0)
    pool.reachable(endpoint, 1.0)
    pool.remove("default/unknown", 1.0)
    assert recorder.heard() == []
    pool.unreachable(endpoint, 2.0)
    pool.unreachable(endpoint, 3.0)
    assert recorder.heard() == [("changed", "a")]


def test_the_engine_is_named_by_the_newer_label_else_the_default() -> None:
    pool = Pool(default_engine="sglang")
    assert pool.upsert(spec("a"), 0.0).engine == "sglang"
    labels = {"inference.networking.k8s.io/engine-type": "vllm", "llm-d.ai/engine-type": "trtllm-serve"}
    assert pool.upsert(replace(spec("b"), labels=labels), 0.0).engine == "trtllm-serve"


def test_an_ipv6_target_has_brackets() -> None:
    assert spec(address="2001:db8::1").target == "[2001:db8::1]:8000"


# ---------------------------------------------------------------- data-parallel ranks


def ranked(pool: Pool, ranks: int) -> dict[str, int | None]:
    (first,) = [endpoint for endpoint in pool.endpoints.values() if endpoint.id == "default/a"]
    pool.set_ranks(first, ranks, 1.0)
    return {endpoint.id: endpoint.spec.rank for endpoint in pool.endpoints.values() if endpoint.ready}


def test_each_rank_behind_a_port_is_a_member() -> None:
    pool = Pool()
    pool.upsert(spec(), 0.0)
    assert ranked(pool, 3) == {"default/a": 0, "default/a-dp1": 1, "default/a-dp2": 2}
    assert {endpoint.target for endpoint in pool.endpoints.values()} == {"10.0.0.1:8000"}
    pool.replace([spec()], 2.0)
    assert ranked(pool, 3) == {"default/a": 0, "default/a-dp1": 1, "default/a-dp2": 2}
    assert ranked(pool, 2) == {"default/a": 0, "default/a-dp1": 1}
    assert ranked(pool, 1) == {"default/a": None}


def test_a_page_that_comes_after_discovery_has_dropped_the_endpoint_brings_no_member_back() -> None:
    pool = Pool()
    pool.upsert(spec(), 0.0)
    pool.replace([], 0.5)
    assert ranked(pool, 3) == {}
    pool.upsert(spec(), 2.0)
    assert ranked(pool, 3) == {"default/a": 0, "default/a-dp1": 1, "default/a-dp2": 2}
    pool.replace([], 3.0)
    assert ranked(pool, 2) == {}


def test_ranks_come_and_go_with_their_endpoint() -> None:
    pool = Pool(retention=60.0)
    pool.upsert(spec(incarnation="1"), 0.0)
    ranked(pool, 3)
    for _ in range(2):
        pool.replace([], 10.0)
        assert not any(endpoint.ready for endpoint in pool.endpoints.values())
        pool.upsert(spec(address="10.0.0.9"), 20.0)
        assert {endpoint.target for endpoint in pool.endpoints.values()} == {"10.0.0.9:8000"}
        assert sum(endpoint.ready for endpoint in pool.endpoints.values()) == 3
    pool.remove("default/a", 30.0)
    pool.expire(100.0)
    assert pool.endpoints == {}
    pool.upsert(spec(), 110.0)
    assert [endpoint.spec.rank for endpoint in pool.endpoints.values()] == [None], "its page says how many there are"
