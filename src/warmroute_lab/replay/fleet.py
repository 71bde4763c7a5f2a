"""The engines of a replay: their profiles, and their restarts and scalings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Self

from warmroute.errors import ConfigurationError
from warmroute_lab.replay.trace import Trace
from warmroute_lab.simulator.profile import Profile, profile_named

MOST_PODS = 1000
"""Most engines of a replay."""
DOWN = 20.0
"""Seconds from the end of an engine to its restart."""


@dataclass(frozen=True, slots=True)
class PodEvent:
    """An event of the fleet at ``at`` seconds of the trace; like the requests' times, divided by the speedup."""

    at: float
    number: int

    @classmethod
    def parse(cls, text: str, option: str) -> Self:
        """``NUMBER@SECONDS``. Raises ConfigurationError that names ``option``."""
        number, _, seconds = text.partition("@")
        try:
            event = cls(float(seconds), int(number))
            if not 0 <= event.at < inf:
                raise ValueError
        except ValueError:
            raise ConfigurationError(f"{option} must be NUMBER@SECONDS, for example 3@60; given: {text!r}") from None
        return event


@dataclass(frozen=True, slots=True)
class Fleet:
    """The engines that serve a trace. Raises ConfigurationError if an event names an impossible pod."""

    profiles: tuple[Profile, ...]
    """One for each pod at the start; pods that join later repeat them in order."""
    restarts: tuple[PodEvent, ...] = ()
    """The engine of pod ``number`` dies and restarts with an empty cache after :data:`DOWN` seconds."""
    scalings: tuple[PodEvent, ...] = ()
    """The number of pods from then on; the last pods join or leave."""
    pickers: int = 1
    """Number of pickers, which take the requests in turn."""
    shared: bool = False
    """Whether the pickers exchange what they decide."""

    def __post_init__(self) -> None:
        if not self.profiles or self.pickers < 1:
            raise ConfigurationError("a replay needs at least one pod and one picker")
        most = max((len(self.profiles), *(event.number for event in self.scalings)))
        for event in self.restarts:
            if not 0 <= event.number < most:
                raise ConfigurationError(f"--restart: pod {event.number} does not exist; pods are numbered from 0")
        if any(event.number < 1 for event in self.scalings):
            raise ConfigurationError("--scale-to: at least one pod must be left")
        if most > MOST_PODS:
            raise ConfigurationError(f"--scale-to: a replay has at most {MOST_PODS} pods")

    def profile(self, pod: int) -> Profile:
        """The profile of a pod."""
        return self.profiles[pod % len(self.profiles)]


def profile(text: str) -> Profile:
    """A profile by name; ``NAME/4`` is a smaller GPU, see :func:`smaller`. Raises ConfigurationError."""
    name, *shares = text.split("/")
    try:
        share = prod(float(each) for each in shares)
    except ValueError:
        raise ConfigurationError(f"--profile must be NAME or NAME/NUMBER; given: {text!r}") from None
    return smaller(profile_named(name), share) if shares else profile_named(name)


def smaller(profile: Profile, share: float) -> Profile:
    """The engine on a GPU with ``1/share`` of the speed and of the KV cache, with the same host.

    The batch limits are vLLM's defaults for GPUs below 70 GB. Raises ConfigurationError if ``share`` is below 1, or so large
    that nothing is left of the KV cache.
    """
    if not 1 <= share < inf:
        raise ConfigurationError("--profile NAME/NUMBER needs a number of at least 1")
    if profile.num_gpu_blocks / share < 2:
        raise ConfigurationError(f"--profile {profile.name}/{share:g}: nothing is left of the KV cache")
    timing = profile.timing
    return replace(
        profile,
        name=f"{profile.name}/{share:g}",
        timing=replace(
            timing,
            weights=timing.weights * share,
            token=timing.token * share,
            attention=timing.attention * share,
            context=timing.context * share,
            context_mixed=timing.context_mixed * share,
            sequence=timing.sequence * share,
        ),
        num_gpu_blocks=int(profile.num_gpu_blocks / share),
        max_num_batched_tokens=min(profile.max_num_batched_tokens, 2048),
        max_num_seqs=min(profile.max_num_seqs, 256),
        measured=False,
    )


def with_cache(profile: Profile, *, prefix_caching: bool, tier: float) -> Profile:
    """The engine with its prefix cache on or off, and a second tier of ``tier`` times its KV cache.

    Raises ConfigurationError if ``tier`` is negative or infinite.
    """
    if not 0 <= tier < inf:
        raise ConfigurationError(f"--cpu-tier must be a number of at least 0 (given: {tier:g})")
    return replace(profile, prefix_caching=prefix_caching, tier_blocks=int(tier * profile.num_gpu_blocks))


def saturation(trace: Trace, profiles: Sequence[Profile]) -> float:
    """The speedup at which the trace keeps the fleet busy all the time, if all engines shared one unbounded cache.

    The work follows the profile's timing: prefill of tokens that no earlier request had, attention, decode steps, and the
    API server's thread; the slower of GPU and API server counts. It is an upper bound for every policy. An engine whose
    prefix cache is off computes every token.
    """
    seen: set[int] = set()
    prefill = pairs = prompt = all_pairs = output = context = 0
    for request in trace.requests:
        known = 0
        for identity, tokens in request.prompt:
            if identity not in seen:
                break
            known += tokens
        seen.update(identity for identity, _ in (*request.prompt, *request.answer))
        length = request.prompt_tokens
        prompt += length
        prefill += length - known
        pairs += (length * length - known * known) // 2
        all_pairs += length * length // 2
        output += request.output_tokens
        context += request.output_tokens * (length + request.output_tokens // 2)
    if not trace.duration:
        return 1.0
    speed = 0.0
    for each in profiles:
        timing = each.timing
        computed, attended = (prefill, pairs) if each.prefix_caching else (prompt, all_pairs)
        gpu = timing.token * (computed + output) + timing.attention * attended
        gpu += timing.sequence * output + timing.context * context
        api = timing.output * output + (timing.accept_token + timing.first_output_token) * prompt
        api += timing.accept * len(trace.requests)
        speed += trace.duration / max(gpu, api)
    return speed
