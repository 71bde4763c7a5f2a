"""InferenceModel, InferenceModelRewrite and InferenceObjective: reads them and merges them. WITHOUT IO.

Of several objects for one model the oldest wins, as in the Gateway API inference extension; of objects created in one second
the first by name. Objects of other pools and objects being deleted are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from warmroute.kubernetes.objects import Object
from warmroute.pool.models import Criticality, Model, ModelTarget


@dataclass(frozen=True, slots=True)
class Claim:
    """An object about a pool's models. ``age`` sorts claims, the oldest first: creation time, namespace, name."""

    age: tuple[str, str, str]
    pool: str
    """Name of the pool; empty while the object is being deleted."""


C = TypeVar("C", bound=Claim)


@dataclass(frozen=True, slots=True)
class ModelClaim(Claim):
    """An InferenceModel."""

    model: Model


@dataclass(frozen=True, slots=True)
class RewriteClaim(Claim):
    """An InferenceModelRewrite. Each rule: the models that it matches (none: all models), and the targets."""

    rules: tuple[tuple[tuple[str, ...], tuple[ModelTarget, ...]], ...]


@dataclass(frozen=True, slots=True)
class ObjectiveClaim(Claim):
    """An InferenceObjective."""

    name: str
    priority: int


def read_model(item: Object) -> ModelClaim:
    """An InferenceModel. Raises LookupError, TypeError or ValueError if a field is missing or wrong."""
    spec = item["spec"]
    targets = _targets(spec.get("targetModels") or (), "name")
    criticality = Criticality.named(spec.get("criticality") or "Standard")
    return ModelClaim(*_claim(item), model=Model(spec["modelName"], targets, criticality))


def read_rewrite(item: Object) -> RewriteClaim:
    """An InferenceModelRewrite. Raises LookupError, TypeError or ValueError if a field is missing or wrong."""
    rules = []
    for rule in item["spec"]["rules"]:
        names = tuple(match["model"]["value"] for match in rule.get("matches") or ())
        rules.append((names, _targets(rule["targets"], "modelRewrite")))
    return RewriteClaim(*_claim(item), rules=tuple(rules))


def read_objective(item: Object) -> ObjectiveClaim:
    """An InferenceObjective. Raises LookupError, TypeError or ValueError if a field is missing or wrong."""
    priority = int(item["spec"].get("priority") or 0)
    return ObjectiveClaim(*_claim(item), name=item["metadata"]["name"], priority=priority)


def models_of(
    pool: str, models: Iterable[ModelClaim], rewrites: Iterable[RewriteClaim]
) -> tuple[list[Model], Model | None]:
    """The pool's models, and the model for all other names (from a rewrite rule without matches), if there is one.

    Targets of a model, by precedence: a rewrite rule that matches its name; its InferenceModel; the rule without matches.
    Criticality comes from the InferenceModel alone.
    """
    table: dict[str, Model] = {}
    for claim in _oldest_first(pool, models):
        table.setdefault(claim.model.name, claim.model)
    any_model: Model | None = None
    rewritten = set()
    for rewrite in _oldest_first(pool, rewrites):
        for names, targets in rewrite.rules:
            if not names and any_model is None:
                any_model = Model("", targets)
            for name in names:
                if name not in rewritten:
                    rewritten.add(name)
                    table[name] = replace(table.get(name, Model(name)), targets=targets)
    return list(table.values()), any_model


def priorities_of(pool: str, objectives: Iterable[ObjectiveClaim]) -> dict[str, int]:
    """Priority of the pool's objectives by name. If two API groups have an objective of one name, the older wins."""
    priorities: dict[str, int] = {}
    for claim in _oldest_first(pool, objectives):
        priorities.setdefault(claim.name, claim.priority)
    return priorities


def _claim(item: Object) -> tuple[tuple[str, str, str], str]:
    metadata = item["metadata"]
    # RFC 3339 in UTC with whole seconds: sorts as text.
    age = (metadata.get("creationTimestamp") or "", metadata["namespace"], metadata["name"])
    return age, "" if metadata.get("deletionTimestamp") else item["spec"]["poolRef"]["name"]


def _targets(items: Sequence[Object], key: str) -> tuple[ModelTarget, ...]:
    """Targets with their weights; equal weights if none is given."""
    weights = [int(item.get("weight") or 0) for item in items]
    if not any(weights):
        weights = [1] * len(weights)
    return tuple(ModelTarget(item[key], weight) for item, weight in zip(items, weights, strict=True))


def _oldest_first(pool: str, claims: Iterable[C]) -> list[C]:
    return sorted((claim for claim in claims if claim.pool == pool), key=lambda claim: claim.age)
