"""Models and objectives: which name a request's model becomes, and how important the request is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

CRITICALITY_PRIORITY = {"Critical": 2, "Standard": 1, "Sheddable": 0}
"""InferenceModel criticality as a priority (protocol reference, section 3.3). Unset counts as Standard."""


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
    priority: int = CRITICALITY_PRIORITY["Standard"]

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
    """The models by name. Empty means that every name passes through unchanged."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}

    def replace(self, models: Iterable[Model]) -> None:
        """Set the whole table. Of two models with one name the first counts."""
        table: dict[str, Model] = {}
        for model in models:
            table.setdefault(model.name, model)
        self._models = table

    def get(self, name: str) -> Model | None:
        """The model of that name, or None where requests for it pass through."""
        return self._models.get(name)

    def __len__(self) -> int:
        return len(self._models)
