"""InferenceModel, InferenceModelRewrite and InferenceObjective: what they say together.

Of several objects for the same model the oldest counts, as upstream has it; of objects of the same second the one whose name
comes first. Objects of other pools, and those being deleted, count as absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from warmroute.kubernetes.objects import Object
from warmroute.pool.models import Criticality, Model, ModelTarget


@dataclass(frozen=True, slots=True)
class Claim:
    """An object that says something about a pool's models. ``age`` orders claims, the oldest first."""

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
    """An InferenceModelRewrite: in order, the models that a rule is for (none: any) and what they become."""

    rules: tuple[tuple[tuple[str, ...], tuple[ModelTarget, ...]], ...]


@dataclass(frozen=True, slots=True)
class ObjectiveClaim(Claim):
    """An InferenceObjective."""

    name: str
    priority: int


def read_model(item: Object) -> ModelClaim:
    """An InferenceModel. Raises LookupError, TypeError or ValueError for what is none."""
    spec = item["spec"]
    targets = _targets(spec.get("targetModels") or (), "name")
    criticality = Criticality.named(spec.get("criticality") or "Standard")
    return ModelClaim(*_claim(item), model=Model(spec["modelName"], targets, criticality))


def read_rewrite(item: Object) -> RewriteClaim:
    """An InferenceModelRewrite. Raises LookupError, TypeError or ValueError for what is none."""
    rules = []
    for rule in item["spec"]["rules"]:
        names = tuple(match["model"]["value"] for match in rule.get("matches") or ())
        rules.append((names, _targets(rule["targets"], "modelRewrite")))
    return RewriteClaim(*_claim(item), rules=tuple(rules))


def read_objective(item: Object) -> ObjectiveClaim:
    """An InferenceObjective. Raises LookupError, TypeError or ValueError for what is none."""
    priority = int(item["spec"].get("priority") or 0)
    return ObjectiveClaim(*_claim(item), name=item["metadata"]["name"], priority=priority)


def models_of(
    pool: str, models: Iterable[ModelClaim], rewrites: Iterable[RewriteClaim]
) -> tuple[list[Model], Model | None]:
    """The pool's models, and what stands for those that have no entry (a rewrite rule without matches).

    A rewrite for exactly this model says what its name becomes, else the InferenceModel of that name, else the rule for any
    model. How critical a model is, only its InferenceModel can say.
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
    """The pool's objectives by name. Of two with one name, in two API groups, the older counts."""
    priorities: dict[str, int] = {}
    for claim in _oldest_first(pool, objectives):
        priorities.setdefault(claim.name, claim.priority)
    return priorities


def _claim(item: Object) -> tuple[tuple[str, str, str], str]:
    metadata = item["metadata"]
    # RFC 3339 in UTC, always to the second: as text it sorts as the time does.
    age = (metadata.get("creationTimestamp") or "", metadata["namespace"], metadata["name"])
    return age, "" if metadata.get("deletionTimestamp") else item["spec"]["poolRef"]["name"]


def _targets(items: Sequence[Object], key: str) -> tuple[ModelTarget, ...]:
    """By weight if any is given, else all alike."""
    weights = [int(item.get("weight") or 0) for item in items]
    if not any(weights):
        weights = [1] * len(weights)
    return tuple(ModelTarget(item[key], weight) for item, weight in zip(items, weights, strict=True))


def _oldest_first(pool: str, claims: Iterable[C]) -> list[C]:
    return sorted((claim for claim in claims if claim.pool == pool), key=lambda claim: claim.age)
