"""Routing strategies: one value for each candidate; the lowest wins, ties go to the least recently chosen endpoint.

A custom strategy is a function of the request and the candidates: in a file (``./my.py:function``), or installed under the
entry-point group ``warmroute.strategies``. docs/strategies.md has worked examples.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

from warmroute.errors import ConfigurationError, WarmrouteError
from warmroute.pool.endpoint import Endpoint, EndpointSpec
from warmroute.request.inference import InferenceRequest, PromptPart
from warmroute.routing.cached_tokens import NOTHING_CACHED, CachedTokens
from warmroute.routing.candidates import Candidates
from warmroute.routing.cost import CostConstants, RequestFactors, is_left_out, plain_cost

ENTRY_POINT_GROUP = "warmroute.strategies"
FALLBACK = "PREFIX_CACHE"
"""Chooses where a custom strategy fails."""
_IN_FILE = re.compile(r"(.+\.py)(?::(.*))?")


class UnusableValuesError(WarmrouteError):
    """A custom strategy's function gave something else than a number for each candidate; the message says what."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One endpoint, as a custom strategy sees it. Tokens are estimates unless the client sent token ids."""

    endpoint: Endpoint
    prompt_tokens: float
    """Tokens of the request's prompt."""
    cached_tokens: float
    """Tokens of the prompt that the endpoint probably holds in its KV cache."""
    pending_tokens: float
    """Prefill tokens that it has to compute before this request."""
    waiting: float
    """Requests that wait for their first token."""
    running: float
    """Requests that have their first token."""
    kv_usage: float
    """KV cache utilization at the last scrape, 0 to 1."""
    cost: float
    """The cost that PREFIX_CACHE uses, in seconds; for strategies that change only a detail."""
    left_out: bool = False
    """PREFIX_CACHE does not choose it, though its cost may be the least: the request itself would wait too long there."""


StrategyFunction = Callable[[InferenceRequest, Sequence[Candidate]], Sequence[float]]
"""One number for each candidate, in order; lower is better."""


@dataclass(slots=True)
class PickContext:
    """The input of a strategy: the request, the candidates and the tokens of the prompt that each holds."""

    request: InferenceRequest
    candidates: Candidates
    cached: CachedTokens
    factors: RequestFactors
    constants: CostConstants
    adapter_costs: Sequence[float] | None
    """Seconds of loading the request's LoRA adapter, by position; None if it asks for none."""
    most_cached: float | None
    """The most tokens of the prompt that a candidate holds; None if nothing was looked up."""

    def costs(self, cached: CachedTokens | None = None) -> list[float]:
        """The cost of every candidate in seconds (:mod:`warmroute.routing.cost`), as if each held these ``cached`` tokens if
        they are given. Those that are left out come behind all others."""
        held = self.cached if cached is None else cached
        return self.candidates.costs(self.factors, held, self.constants, self.adapter_costs)


class Strategy(Protocol):
    """The interface of a strategy."""

    uses_prefix: bool
    """Whether prompts are to be hashed and matched."""
    uses_headers: bool
    """Whether it reads the request's headers."""

    def __call__(self, context: PickContext) -> Sequence[float]:
        """The value of every candidate, by position; lower is better."""


class MarginalCost:
    """The time that the request adds for all requests, cached prefixes counted (PREFIX_CACHE) or not (DEFAULT), without
    endpoints where it would itself wait too long (docs/cost.md)."""

    uses_headers = False

    def __init__(self, *, uses_prefix: bool) -> None:
        self.uses_prefix = uses_prefix
        self._cached = None if uses_prefix else NOTHING_CACHED

    def __call__(self, context: PickContext) -> Sequence[float]:
        return context.costs(self._cached)


class LeastRequest:
    """The endpoint with the fewest requests in flight."""

    uses_prefix = uses_headers = False

    def __call__(self, context: PickContext) -> Sequence[float]:
        return context.candidates.total


class RoundRobin:
    """Each endpoint in turn: all values are equal, and ties go to the least recently chosen."""

    uses_prefix = uses_headers = False

    def __call__(self, context: PickContext) -> Sequence[float]:
        return [0.0] * len(context.candidates)


class Random:
    """A uniformly random endpoint."""

    uses_prefix = uses_headers = False

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def __call__(self, context: PickContext) -> Sequence[float]:
        return [self._rng.random() for _ in context.candidates.loads]


class Custom:
    """A custom strategy function. It gets one :class:`Candidate` for each endpoint; built-in strategies need none."""

    uses_prefix = uses_headers = True

    def __init__(self, function: StrategyFunction) -> None:
        self._function = function

    def try_out(self) -> None:
        """Call the function for a sample request with two candidates. Raises what a call raises."""
        prompt = PromptPart(b"sample", 6)
        request = InferenceRequest(model="sample", seed=b"sample", parts=(prompt,), prompt_bytes=6, tokens=2)
        specs = [EndpointSpec("sample", f"sample-{k}", f"192.0.2.{k}", 8000) for k in range(2)]
        samples = tuple(
            Candidate(Endpoint(spec, engine="vllm", now=0.0), 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.001) for spec in specs
        )
        self._values(request, samples)

    def __call__(self, context: PickContext) -> Sequence[float]:
        """Raises what the function raises, and UnusableValuesError if it exits or gives anything but a number for each
        candidate."""
        columns, factors = context.candidates, context.factors
        candidates = tuple(
            Candidate(
                endpoint=load.endpoint,
                prompt_tokens=factors.prompt_tokens,
                cached_tokens=context.cached.at(k),
                pending_tokens=columns.pending(k, factors.now),
                waiting=columns.waiting[k],
                running=columns.running[k],
                kv_usage=load.kv_usage,
                cost=plain_cost(cost),
                left_out=is_left_out(cost),
            )
            for k, (load, cost) in enumerate(zip(columns.loads, context.costs(), strict=True))
        )
        return self._values(context.request, candidates)

    def _values(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> Sequence[float]:
        try:
            given: object = self._function(request, candidates)
            if inspect.iscoroutine(given):
                given.close()
                raise UnusableValuesError("it is an async function; an ordinary one is needed")
            if isinstance(given, str | bytes) or not isinstance(given, Iterable):
                raise UnusableValuesError(f"it returned {_kind(given)}, not a list of numbers")
            values = [_number(value) for value in given]
        except Exception:
            raise
        except BaseException as error:  # sys.exit, CancelledError: they would end other requests, too
            raise UnusableValuesError(f"it raised {type(error).__name__}") from error
        if len(values) != len(candidates):
            values_given = "1 value" if len(values) == 1 else f"{len(values)} values"
            raise UnusableValuesError(f"it returned {values_given} for {len(candidates)} candidates")
        return values


def _number(value: Any) -> float:
    try:
        if isinstance(value, str | bytes):  # float() would read it
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise UnusableValuesError(f"it returned {_kind(value)} for a candidate, not a number") from None
    if math.isnan(number):
        raise UnusableValuesError("it returned a value that is not a number: NaN")
    return number


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


BUILT_IN: dict[str, Callable[[random.Random], Strategy]] = {
    "PREFIX_CACHE": lambda rng: MarginalCost(uses_prefix=True),
    "DEFAULT": lambda rng: MarginalCost(uses_prefix=False),
    "LEAST_REQUEST": lambda rng: LeastRequest(),
    "ROUND_ROBIN": lambda rng: RoundRobin(),
    "RANDOM": Random,
}
"""The built-in strategies: factories by name."""


def find(name: str, *, rng: random.Random) -> Strategy:
    """The strategy of that name: built-in or installed (upper or lower case), or ``FILE.py:FUNCTION``.

    A custom one is tried once. Raises ConfigurationError if there is none, with the names there are, or if it cannot be
    loaded or fails.
    """
    wanted = name.upper()
    if wanted in BUILT_IN:
        return BUILT_IN[wanted](rng)
    try:
        function = _of_file(name) if is_file(name) else _installed(name)
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:  # a foreign module may raise anything when it is imported
        raise ConfigurationError(f"the routing strategy {name!r} cannot be loaded: {failure(error)}") from error
    if not callable(function):
        raise ConfigurationError(f"the routing strategy {name!r} is not a function")
    strategy = Custom(function)
    try:
        strategy.try_out()
    except Exception as error:
        raise ConfigurationError(
            f"the routing strategy {name!r} fails on a sample request: {failure(error)}"
        ) from error
    return strategy


def spelled(name: str) -> str:
    """The name as metrics and pages show it: a built-in strategy has one series, however users write it."""
    return name.upper() if name.upper() in BUILT_IN else name


def is_file(name: str) -> bool:
    """Whether the name is of a function in a file."""
    return _IN_FILE.fullmatch(name) is not None


def absolute(name: str) -> str:
    """The name, of a function in a file with the file's whole path: it works in every directory."""
    return str(Path(name).absolute()) if is_file(name) else name


def require_name(name: str, flag: str) -> None:
    """Raise ConfigurationError, which names the ``flag``, unless the name is of a built-in or installed strategy."""
    if name.upper() in BUILT_IN:  # so that a start does not look through the installed distributions
        return
    if is_file(name):
        raise ConfigurationError(f"{flag} cannot be a file")
    names = [*BUILT_IN, *sorted(_entries())]
    if name.upper() not in names:
        raise ConfigurationError(f"{flag}: there is no routing strategy {name!r}; known are {', '.join(names)}")


def failure(error: BaseException) -> str:
    """An error of a strategy in a few words, with the line of its code that raised it."""
    if isinstance(error, UnusableValuesError):
        return str(error)
    (*_, last) = traceback.extract_tb(error.__traceback__)
    try:
        said = f"{type(error).__name__}: {error}"
    except Exception:  # the strategy's own exception, whose text cannot be made
        said = type(error).__name__
    # The text of a syntax error has the place itself. A call that does not fit the function's parameters fails here.
    if isinstance(error, SyntaxError) or last.filename == __file__:
        return said
    return f"{said} ({Path(last.filename).name}, line {last.lineno})"


def _installed(name: str) -> Any:
    installed = _entries()
    if name.upper() not in installed:
        known = [*BUILT_IN, *sorted(installed)]
        raise ConfigurationError(
            f"there is no routing strategy {name!r}; known are {', '.join(known)}, and FILE.py:FUNCTION"
        )
    return installed[name.upper()].load()


def _entries() -> dict[str, EntryPoint]:
    """What is installed, by its name in upper case."""
    return {entry.name.upper(): entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _of_file(name: str) -> Any:
    match = _IN_FILE.fullmatch(name)
    assert match is not None
    path, function = Path(match[1]), match[2]
    if not function:
        raise ConfigurationError(f"the routing strategy {name!r} names no function: {path}:FUNCTION")
    if not path.is_file():
        raise ConfigurationError(f"the routing strategy {name!r}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"warmroute_strategy_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise ConfigurationError(f"the routing strategy {name!r}: {path.name} has no function {function}")
    return getattr(module, function)
