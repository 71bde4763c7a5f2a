"""Models and objectives: which name a request's model becomes, and how important the request is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Self


class Criticality(IntEnum):
    """What becomes of a request while the pool is saturated; the names are those of an InferenceModel."""

    SHEDDABLE = 0
    """Refused with 429."""
    STANDARD = 1
    """Served; refused only by those who ask for what upstream 0.5 did."""
    CRITICAL = 2
    """Always served."""

    @classmethod
    def named(cls, name: str) -> Self:
        """``Critical``, ``Standard`` or ``Sheddable``. Raises KeyError for anything else."""
        return cls[name.upper()]

    @classmethod
    def of_priority(cls, priority: int) -> Criticality:
        """An InferenceObjective's priority: negative ones are sheddable, 0 is what nobody has said anything about."""
        return cls.SHEDDABLE if priority < 0 else cls.CRITICAL if priority > 0 else cls.STANDARD


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """A name to send to the engine and its weight in the draw."""

    name: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Model:
    """A model name that clients may ask for. No targets: the name is sent unchanged."""

    name: str
    targets: tuple[ModelTarget, ...] = ()
    criticality: Criticality = Criticality.STANDARD

    def draw(self, chance: float) -> str:
        """The target's name for ``chance`` in [0, 1), by weight."""
        if not self.targets:
            return self.name
        point = chance * sum(target.weight for target in self.targets)
        for target in self.targets:
            point -= target.weight
            if point < 0:
                return target.name
        return self.targets[-1].name


class ModelTable:
    """The models by name, and the objectives' priorities by theirs. Empty: every name passes through unchanged."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self._any: Model | None = None
        self._priorities: dict[str, int] = {}

    def replace(self, models: Iterable[Model], any_model: Model | None = None) -> None:
        """Set all models. Of two with one name the first counts; ``any_model`` stands for the names that have none."""
        table: dict[str, Model] = {}
        for model in models:
            table.setdefault(model.name, model)
        self._models, self._any = table, any_model

    def replace_objectives(self, priorities: Mapping[str, int]) -> None:
        """Set the priority of every objective."""
        self._priorities = dict(priorities)

    def get(self, name: str) -> Model | None:
        """The model of that name, or None where requests for it pass through."""
        return self._models.get(name, self._any)

    def objective(self, name: str) -> Criticality | None:
        """How important the requests of that objective are; None if there is no such objective."""
        priority = self._priorities.get(name)
        return None if priority is None else Criticality.of_priority(priority)

    def __len__(self) -> int:
        return len(self._models)
