"""The list of models that an engine serves (``/v1/models``). WITHOUT IO.

Format: https://platform.openai.com/docs/api-reference/models/list. vLLM and SGLang name the base model of a LoRA adapter in
``parent``.
"""

from __future__ import annotations

from typing import Any

import orjson

from warmroute.errors import ScrapeError
from warmroute.pool.endpoint import LONGEST_MODEL_NAME, MOST_SERVED_MODELS, ServedModels

MOST_BYTES = 1 << 20
"""Bytes of a list that is decoded. A card of vLLM has 700 bytes; 1,024 adapters take 700 kB."""


def read_models(body: bytes) -> ServedModels:
    """The names of the models, and which of them are adapters. Raises ScrapeError if the body is no list of models."""
    if len(body) > MOST_BYTES:
        raise ScrapeError(f"the list of models is larger than {MOST_BYTES} bytes")
    try:
        cards: Any = orjson.loads(body)["data"]
        names = {card["id"]: bool(card.get("parent")) for card in cards}
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ScrapeError("the engine's list of models cannot be read") from error
    if not names or len(names) > MOST_SERVED_MODELS:
        raise ScrapeError(f"the engine lists {len(names)} models; from 1 to {MOST_SERVED_MODELS} can be used")
    if not all(isinstance(name, str) and 0 < len(name) <= LONGEST_MODEL_NAME for name in names):
        raise ScrapeError("the engine's list of models has a name that cannot be used")
    return ServedModels(frozenset(names), frozenset(name for name, adapter in names.items() if adapter))
