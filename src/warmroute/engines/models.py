"""The list of models that an engine serves (``/v1/models``). WITHOUT IO.

Format: https://platform.openai.com/docs/api-reference/models/list. vLLM and SGLang name the base model of a LoRA adapter in
``parent``, and the path of the weights in ``root``: names with one ``root`` are one model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from warmroute.errors import ScrapeError
from warmroute.pool.endpoint import LONGEST_MODEL_NAME, MOST_SERVED_MODELS, ServedModels

MOST_BYTES = 1 << 20
"""Bytes of a list that is decoded. A card of vLLM has 700 bytes; 1,024 adapters take 700 kB."""


def read_models(body: bytes) -> ServedModels:
    """The names of the models, which of them are adapters, and which are one. Raises ScrapeError if the body is no list."""
    if len(body) > MOST_BYTES:
        raise ScrapeError(f"the list of models is larger than {MOST_BYTES} bytes")
    try:
        cards: Any = orjson.loads(body)["data"]
        names = {card["id"]: bool(card.get("parent")) for card in cards}
        roots = {card["id"]: card.get("root") for card in cards if not card.get("parent")}
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ScrapeError("the engine's list of models cannot be read") from error
    if not names or len(names) > MOST_SERVED_MODELS:
        raise ScrapeError(f"the engine lists {len(names)} models; from 1 to {MOST_SERVED_MODELS} can be used")
    if not all(isinstance(name, str) and 0 < len(name) <= LONGEST_MODEL_NAME for name in names):
        raise ScrapeError("the engine's list of models has a name that cannot be used")
    return ServedModels(
        frozenset(names), frozenset(name for name, adapter in names.items() if adapter), _aliases(roots)
    )


def _aliases(roots: Mapping[str, object]) -> dict[str, str]:
    """Each name whose root has an earlier one, by the alphabet, with that. A root that is no text counts as none."""
    known = {name: root for name, root in sorted(roots.items()) if isinstance(root, str) and root}
    first: dict[str, str] = {}
    for name, root in known.items():
        first.setdefault(root, name)
    return {name: first[root] for name, root in known.items() if first[root] != name}
