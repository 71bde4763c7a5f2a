"""InferenceModel, InferenceModelRewrite and InferenceObjective: reads them and merges them. WITHOUT IO.

Of several objects for one model the oldest wins, as in the Gateway API inference extension; of objects created in one second
the first by name. Objects of other pools and objects being deleted are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from warmroute.kubernetes.objects import Object, text
from warmroute.pool.models import Criticality, Model, ModelTarget


@dataclass(frozen=True, slots=True)
class _OfPool:
    """An object that names its pool. ``age`` sorts objects, the oldest first: creation time, namespace, name."""

    age: tuple[str, str, str]
    pool: str
    """Name of the pool; empty while the object is being deleted."""


T = TypeVar("T", bound=_OfPool)


@dataclass(frozen=True, slots=True)
class InferenceModel(_OfPool):
    """An InferenceModel."""

    model: Model


@dataclass(frozen=True, slots=True)
class InferenceModelRewrite(_OfPool):
    """An InferenceModelRewrite. Each rule: the models that it matches (none: all models), and the targets."""

    rules: tuple[tuple[tuple[str, ...], tuple[ModelTarget, ...]], ...]


@dataclass(frozen=True, slots=True)
class InferenceObjective(_OfPool):
    """An InferenceObjective."""

    name: str
    priority: int


def read_model(item: Object) -> InferenceModel:
    """An InferenceModel. Raises LookupError, TypeError or ValueError if a field is missing or wrong."""
    spec = item["spec"]
    targets = _targets(spec.get("targetModels") or (), "name")
    criticality = Criticality.named(spec.get("criticality") or "Standard")
    return InferenceModel(*_age_and_pool(item), model=Model(text(spec["modelName"]), targets, criticality))


def read_rewrite(item: Object) -> InferenceModelRewrite:
    """An InferenceModelRewrite. Raises LookupError, TypeError or ValueError if a field is missing or wrong."""
    rules = []
    for rule in item["spec"]["rules"]:
        names = tuple(text(match["model"]["value"]) for match in rule.get("matches") or ())
        targets = _targets(rule["targets"], "modelRewrite")
        if not targets:
            raise ValueError("a rule needs targets")
        rules.append((names, targets))
    return InferenceModelRewrite(*_age_and_pool(item), rules=tuple(rules))


def read_objective(item: Object) -> InferenceObjective:
    """An InferenceObjective. Raises LookupError, TypeError or ValueError if a field is missing or wrong."""
    priority = int(item["spec"].get("priority") or 0)
    return InferenceObjective(*_age_and_pool(item), name=text(item["metadata"]["name"]), priority=priority)


def models_of(
    pool: str, models: Iterable[InferenceModel], rewrites: Iterable[InferenceModelRewrite]
) -> tuple[list[Model], Model | None]:
    """The pool's models, and the model for all other names (from a rewrite rule without matches), if there is one.

    Targets of a model, by precedence: a rewrite rule that matches its name; its InferenceModel; the rule without matches.
    Criticality comes from the InferenceModel alone.
    """
    table: dict[str, Model] = {}
    for item in _oldest_first(pool, models):
        table.setdefault(item.model.name, item.model)
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


def priorities_of(pool: str, objectives: Iterable[InferenceObjective]) -> dict[str, int]:
    """Priority of the pool's objectives by name. If two API groups have an objective of one name, the older wins."""
    priorities: dict[str, int] = {}
    for item in _oldest_first(pool, objectives):
        priorities.setdefault(item.name, item.priority)
    return priorities


def _age_and_pool(item: Object) -> tuple[tuple[str, str, str], str]:
    metadata = item["metadata"]
    # RFC 3339 in UTC with whole seconds: sorts as text.
    age = (text(metadata.get("creationTimestamp") or ""), text(metadata["namespace"]), text(metadata["name"]))
    return age, "" if metadata.get("deletionTimestamp") else text(item["spec"]["poolRef"]["name"])


def _targets(items: Sequence[Object], key: str) -> tuple[ModelTarget, ...]:
    """Targets with their weights; equal weights if none is given. Raises LookupError, TypeError or ValueError."""
    weights = [int(item.get("weight") or 0) for item in items]
    if not any(weights):
        weights = [1] * len(weights)
    targets = tuple(ModelTarget(text(item[key]), weight) for item, weight in zip(items, weights, strict=True))
    if not all(target.name for target in targets):
        raise ValueError("a target needs the name of a model")
    return targets


def _oldest_first(pool: str, objects: Iterable[T]) -> list[T]:
    return sorted((item for item in objects if item.pool == pool), key=lambda item: item.age)
