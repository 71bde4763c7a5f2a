"""Synthetic loads by name. The seed draws a scenario's sizes and its requests.

Times are scaled so that a speedup of 1 is saturation (:func:`warmroute_lab.replay.fleet.saturation`).
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from warmroute.errors import ConfigurationError
from warmroute_lab.load.workload import Workload
from warmroute_lab.replay.fleet import Fleet, PodEvent, profile, saturation
from warmroute_lab.replay.trace import Identities, Trace, TracedRequest, conversation, sorted_by_time
from warmroute_lab.simulator.blocks import Segment
from warmroute_lab.simulator.profile import DEFAULT_PROFILE, Profile

PROFILE = f"{DEFAULT_PROFILE}/8"
"""Default engine: about the speed of an A10, so that a few thousand requests take minutes of virtual time."""
REQUESTS = 3000
"""Approximate number of requests of a scenario."""
AGENT_TURNS = 20
"""Requests of one agent."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of load, with the fleet that serves it."""

    description: str
    requests: Callable[[random.Random, int], list[TracedRequest]]
    """Draws approximately that many requests; :func:`build` scales their times."""
    restart: bool = False
    """One pod restarts in the middle."""
    scale_out: bool = False
    """Half of the pods join in the middle."""
    mixed: bool = False
    """Every second pod has a third of the speed and of the KV cache."""
    pickers: int = 1


def build(
    name: str, *, seed: int, pods: int, profiles: Sequence[Profile] = (), requests: int | None = None
) -> tuple[Trace, Fleet]:
    """The scenario of that name. ``profiles`` are those of the first pods, repeated; empty: the scenario's own.

    Raises ConfigurationError with the known names for an unknown one.
    """
    scenario = SCENARIOS.get(name)
    if scenario is None:
        raise ConfigurationError(f"no file and no scenario is called {name!r}; scenarios: {', '.join(SCENARIOS)}")
    rng = random.Random(f"{name}/{seed}")
    made = scenario.requests(rng, requests or REQUESTS)
    kinds = tuple(profiles) or ((profile(PROFILE), profile(f"{PROFILE}/3")) if scenario.mixed else (profile(PROFILE),))
    at_first = max(1, pods // 2) if scenario.scale_out else pods
    fleet = tuple(kinds[pod % len(kinds)] for pod in range(at_first))
    trace = Trace(name, made)
    at_saturation = saturation(trace, fleet)
    for request in made:
        request.at /= at_saturation
    middle = trace.duration / 2
    return trace, Fleet(
        fleet,
        restarts=(PodEvent(middle, pods // 2),) if scenario.restart else (),
        scalings=(PodEvent(middle, pods),) if scenario.scale_out else (),
        pickers=scenario.pickers,
    )


def _multi_round(rng: random.Random, requests: int) -> list[TracedRequest]:
    rounds = rng.randint(5, 15)
    workload = Workload(
        num_users=max(1, requests // rounds),
        num_rounds=rounds,
        qps=1.0,
        shared_system_prompt=rng.choice((100, 1000)),
        user_history_prompt=rng.randint(1000, 4000),
        answer_len=rng.randint(50, 200),
    )
    identities = Identities()
    shared = identities.text(workload.shared_system_prompt)
    said: dict[int, tuple[Segment, ...]] = {}
    last: dict[int, int] = {}
    made: list[TracedRequest] = []
    for at, user, _ in sorted(workload.schedule()):
        prompt = said.get(user) or (*shared, *identities.text(workload.user_history_prompt))
        prompt += identities.text(20)
        answer = identities.text(workload.answer_len)
        made.append(TracedRequest(at, prompt, workload.answer_len, answer, after=last.get(user)))
        said[user], last[user] = prompt + answer, len(made) - 1
    return made


def _shared_prompts(rng: random.Random, requests: int) -> list[TracedRequest]:
    identities = Identities()
    opening = _groups(rng, identities, count=rng.randint(20, 150), tokens=(1000, 6000), skew=rng.uniform(0.6, 1.3))
    question, output = rng.randint(50, 500), rng.randint(50, 250)
    return [
        TracedRequest(at, opening() + identities.text(_about(rng, question)), _about(rng, output))
        for at in _poisson(rng, requests)
    ]


def _hot_prefix(rng: random.Random, requests: int) -> list[TracedRequest]:
    identities = Identities()
    prefix = identities.text(rng.randint(1000, 8000))
    question, output = rng.randint(20, 200), rng.randint(20, 150)
    return [
        TracedRequest(at, prefix + identities.text(_about(rng, question)), _about(rng, output))
        for at in _poisson(rng, requests)
    ]


def _full_hits(rng: random.Random, requests: int) -> list[TracedRequest]:
    identities = Identities()
    prompts = [identities.text(rng.randint(2000, 6000)) for _ in range(rng.randint(4, 12))]
    output = rng.randint(400, 1000)
    return [TracedRequest(at, rng.choice(prompts), _about(rng, output)) for at in _poisson(rng, requests)]


def _bursts(rng: random.Random, requests: int) -> list[TracedRequest]:
    identities = Identities()
    size, output = rng.randint(10, 60), rng.randint(50, 200)
    made = []
    for at in _poisson(rng, max(1, requests // size)):
        prompt = identities.text(rng.randint(1000, 6000))
        made += [TracedRequest(at + i * 1e-6, prompt, _about(rng, output)) for i in range(size)]
    return sorted_by_time(made)


def _long_among_short(rng: random.Random, requests: int) -> list[TracedRequest]:
    identities = Identities()
    opening = _groups(rng, identities, count=rng.randint(10, 60), tokens=(500, 2500), skew=rng.uniform(0.6, 1.2))
    share, question, output = rng.uniform(0.02, 0.08), rng.randint(50, 400), rng.randint(50, 250)
    made = []
    for at in _poisson(rng, requests):
        long = rng.random() < share
        prompt = (
            identities.text(rng.randint(20_000, 60_000)) if long else opening() + identities.text(_about(rng, question))
        )
        made.append(TracedRequest(at, prompt, _about(rng, output)))
    return made


def _agents(rng: random.Random, requests: int) -> list[TracedRequest]:
    identities = Identities()
    opening = _groups(rng, identities, count=rng.randint(2, 8), tokens=(3000, 8000), skew=1.0)
    result, output, pause = rng.randint(200, 800), rng.randint(40, 150), rng.uniform(0.5, 3.0)
    made: list[TracedRequest] = []
    for at in _poisson(rng, max(1, requests // AGENT_TURNS)):
        turns = [(_about(rng, result), _about(rng, output), rng.expovariate(1 / pause)) for _ in range(AGENT_TURNS)]
        made += conversation(identities, at, turns, first=len(made), opening=opening())
    return sorted_by_time(made)


def _chats(rng: random.Random, requests: int) -> list[TracedRequest]:
    """Conversations of a few turns, each with one of several system prompts."""
    identities = Identities()
    opening = _groups(rng, identities, count=rng.randint(5, 40), tokens=(500, 4000), skew=rng.uniform(0.6, 1.2))
    question, output, turns = rng.randint(50, 600), rng.randint(50, 250), rng.randint(2, 6)
    made: list[TracedRequest] = []
    for at in _poisson(rng, max(1, requests // turns)):
        said = [
            (_about(rng, question), _about(rng, output), rng.expovariate(1 / 3.0))
            for _ in range(rng.randint(1, 2 * turns - 1))
        ]
        made += conversation(identities, at, said, first=len(made), opening=opening())
    return sorted_by_time(made)


def _poisson(rng: random.Random, count: int) -> Iterator[float]:
    at = 0.0
    for _ in range(count):
        at += rng.expovariate(1.0)
        yield at


def _about(rng: random.Random, mean: int) -> int:
    """A log-normal length with about that mean."""
    return max(1, round(mean * min(rng.lognormvariate(-0.18, 0.6), 5.0)))


def _groups(
    rng: random.Random, identities: Identities, *, count: int, tokens: tuple[int, int], skew: float
) -> Callable[[], tuple[Segment, ...]]:
    """A function that draws one of ``count`` texts, the k-th with a probability proportional to ``1 / k**skew`` (Zipf)."""
    texts = [identities.text(rng.randint(*tokens)) for _ in range(count)]
    cumulated = list(accumulate((k + 1) ** -skew for k in range(count)))
    return lambda: texts[min(bisect(cumulated, rng.random() * cumulated[-1]), count - 1)]


SCENARIOS = {
    "multi-round": Scenario("users with several questions each, as in LMCache's multi-round-qa", _multi_round),
    "shared-prompts": Scenario("many system prompts, few of them popular (Zipf)", _shared_prompts),
    "hot-prefix": Scenario("one prefix for all requests, short questions", _hot_prefix),
    "full-hits": Scenario("a few fixed prompts, long answers", _full_hits),
    "bursts": Scenario("bursts of identical prompts", _bursts),
    "long-among-short": Scenario("a few very long prompts among many short ones", _long_among_short),
    "agents": Scenario("agents with twenty turns of tool calls", _agents),
    "mixed-gpus": Scenario("conversations; every second pod has a third of the speed", _chats, mixed=True),
    "restart": Scenario("conversations; a pod restarts in the middle", _chats, restart=True),
    "scale-out": Scenario("conversations; the pods double in the middle", _chats, scale_out=True),
    "three-pickers": Scenario("conversations; three pickers that exchange nothing", _chats, pickers=3),
}
"""The scenarios by name."""
