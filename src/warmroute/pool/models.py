"""Models and objectives: the name that a request's model is rewritten to, and the request's criticality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Self


class Criticality(IntEnum):
    """How important a request is: decides whether it is shed while the pool is saturated. Names as in an InferenceModel."""

    SHEDDABLE = 0
    """Rejected with 429."""
    STANDARD = 1
    """Served; rejected with 429 only if the setting ``shedding`` is ``upstream-v0.5``."""
    CRITICAL = 2
    """Always served."""

    @classmethod
    def named(cls, name: str) -> Self:
        """``Critical``, ``Standard`` or ``Sheddable``. Raises KeyError for anything else."""
        return cls[name.upper()]

    @classmethod
    def of_priority(cls, priority: int) -> Criticality:
        """The criticality of an InferenceObjective's priority: negative is sheddable, 0 (the default) standard."""
        return cls.SHEDDABLE if priority < 0 else cls.CRITICAL if priority > 0 else cls.STANDARD


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """A name to send to the engine, and its share of the requests: its weight among those of all targets."""

    name: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Model:
    """A model name that clients may ask for. Without targets the name is sent unchanged."""

    name: str
    targets: tuple[ModelTarget, ...] = ()
    criticality: Criticality = Criticality.STANDARD

    def draw(self, chance: float) -> str:
        """A target's name by weight, for ``chance`` drawn evenly from [0, 1)."""
        if not self.targets:
            return self.name
        point = chance * sum(target.weight for target in self.targets)
        for target in self.targets:
            point -= target.weight
            if point < 0:
                return target.name
        return self.targets[-1].name


class ModelTable:
    """Models by name and priorities of objectives by name. If it is empty, every model name is sent unchanged."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self._any: Model | None = None
        self._priorities: dict[str, int] = {}

    def replace(self, models: Iterable[Model], any_model: Model | None = None) -> None:
        """Replace all models. Of two with one name the first counts; ``any_model`` is used for all other names."""
        table: dict[str, Model] = {}
        for model in models:
            table.setdefault(model.name, model)
        self._models, self._any = table, any_model

    def replace_objectives(self, priorities: Mapping[str, int]) -> None:
        """Set the priority of every objective."""
        self._priorities = dict(priorities)

    def get(self, name: str) -> Model | None:
        """The model of that name; None if the name is sent unchanged."""
        return self._models.get(name, self._any)

    def objective(self, name: str) -> Criticality | None:
        """The criticality of the objective's requests; None if there is no such objective."""
        priority = self._priorities.get(name)
        return None if priority is None else Criticality.of_priority(priority)

    def __len__(self) -> int:
        return len(self._models)
