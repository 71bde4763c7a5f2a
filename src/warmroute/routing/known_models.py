"""Names of models that the pool's engines serve: which are LoRA adapters, and which stand for one model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from warmroute.pool.endpoint import MOST_SERVED_MODELS, ServedModels
from warmroute.request.inference import InferenceRequest

MOST_ADAPTER_NAMES = MOST_SERVED_MODELS
"""LoRA adapter names that are remembered as such, those of all engines together: as many as one engine may list."""


class KnownModels:
    """Filled from the engines' lists of models and metrics pages."""

    def __init__(self) -> None:
        self._adapters: OrderedDict[str, None] = OrderedDict()
        self._aliases: dict[str, str] = {}
        """Other names of a model that its engines serve under several, with the name that stands for all."""

    def add_adapters(self, names: Iterable[str]) -> None:
        """An engine has loaded or lists these adapters."""
        for name in names:
            self._adapters[name] = None
            self._adapters.move_to_end(name)
            if len(self._adapters) > MOST_ADAPTER_NAMES:
                self._adapters.popitem(last=False)

    def replace_aliases(self, lists: Iterable[ServedModels]) -> None:
        """The lists of models of all engines."""
        self._aliases = {name: one for models in lists for name, one in models.aliases.items()}

    def is_adapter(self, model: str) -> bool:
        """Whether an engine has named ``model`` as a LoRA adapter."""
        return model in self._adapters

    def canonical(self, request: InferenceRequest) -> InferenceRequest:
        """The request under the one name of its model: engines cache prompts of all its names together."""
        name = self._aliases.get(request.model)
        return request if name is None else request.with_model(name)
