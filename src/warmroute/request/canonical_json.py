"""Values as bytes: equal for two JSON texts that differ in white space, escapes or the order of members only."""

from __future__ import annotations

import json

import orjson

_TOO_DEEP_FOR_ORJSON = "Recursion limit reached"


def encode(text: str) -> bytes:
    """UTF-8. Lone surrogates, which JSON can contain, become three bytes each."""
    return text.encode("utf-8", "surrogatepass")


def canonical_json(value: object) -> bytes:
    """JSON without white space, with sorted members. Raises RecursionError beyond 254 levels."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        if str(error) == _TOO_DEEP_FOR_ORJSON:
            raise RecursionError from error
        # lone surrogates, or integers beyond 64 bits
        return encode(json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True))
