"""The engines of a replay: how many, how fast, and what happens to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Self

from warmroute.errors import ConfigurationError
from warmroute_lab.replay.trace import Trace
from warmroute_lab.simulator.profile import Profile, profile_named

DOWN = 20.0
"""Seconds for which a restarted engine does not answer."""


@dataclass(frozen=True, slots=True)
class PodEvent:
    """Something that happens to the fleet at ``at`` seconds of the trace, divided by the speedup like its requests."""

    at: float
    number: int

    @classmethod
    def parse(cls, text: str, option: str) -> Self:
        """``NUMBER@SECONDS``. Raises ConfigurationError that names ``option``."""
        number, _, at = text.partition("@")
        try:
            return cls(float(at), int(number))
        except ValueError:
            raise ConfigurationError(f"{option} must be NUMBER@SECONDS, for example 3@60; given: {text!r}") from None


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the requests meet."""

    profiles: tuple[Profile, ...]
    """One for each pod that is there at the start; pods that come later go through them again."""
    restarts: tuple[PodEvent, ...] = ()
    """The engine of pod ``number`` dies and is back, empty, after :data:`DOWN` seconds."""
    scalings: tuple[PodEvent, ...] = ()
    """From then on there are ``number`` pods; the last ones come and go."""
    pickers: int = 1
    """Pickers that share the requests evenly and know nothing of each other."""

    def __post_init__(self) -> None:
        if not self.profiles or self.pickers < 1:
            raise ConfigurationError("a replay needs at least one pod and one picker")
        most = max((len(self.profiles), *(event.number for event in self.scalings)))
        for event in self.restarts:
            if not 0 <= event.number < most:
                raise ConfigurationError(f"--restart: there is no pod {event.number}; they count from 0")
        if any(event.number < 1 for event in self.scalings):
            raise ConfigurationError("--scale-to: at least one pod must be left")

    def profile(self, pod: int) -> Profile:
        """What the pod's engine is."""
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
    """The same engine on a GPU with one ``share``-th of the speed and of the cache; the host stays as fast.

    Its limits are vLLM's defaults for GPUs of less than 70 GB.
    """
    if share < 1:
        raise ConfigurationError("a smaller GPU is NAME/NUMBER with a number of at least 1")
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


def saturation(trace: Trace, profiles: Sequence[Profile]) -> float:
    """The speedup at which the trace gives the fleet work for every second, if each prompt met all caches at once.

    The work is that of the profile's timing: prefill of what no request before it had, attention over all of it, and
    for each output token the slower of GPU and API server. No policy gets quite as far.
    """
    seen: set[int] = set()
    prefill = pairs = prompt = output = context = 0
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
        output += request.output_tokens
        context += request.output_tokens * (length + request.output_tokens // 2)
    if not trace.duration:
        return 1.0
    speed = 0.0
    for each in profiles:
        timing = each.timing
        gpu = timing.token * (prefill + output) + timing.attention * pairs
        gpu += timing.sequence * output + timing.context * context
        api = timing.output * output + (timing.accept_token + timing.first_output_token) * prompt
        api += timing.accept * len(trace.requests)
        speed += trace.duration / max(gpu, api)
    return speed
