"""Ids of what an engine keeps for a client (responses, conversations, sessions), read from paths and bodies.

Only the engine that keeps it can serve a request that names it: :mod:`warmroute.routing.state_keepers`.
"""

from __future__ import annotations

import re
from typing import Any

STATE_FIELDS = ("session_params", "conversation", "previous_response_id")
"""Fields of a body that name what is kept: SGLang's session, OpenAI's conversation and response. The first one counts."""
MAX_ID = 256
"""Characters of an id; a longer one names nothing."""
_IN_PATH = re.compile(r"/(?:responses|conversations)/([^/?]+)")
_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_-]{1,250})"')


def state_in_path(path: str) -> str:
    """The id of the response or conversation that is read, continued, cancelled or deleted; ``""`` if none."""
    named = _IN_PATH.search(path)
    return _bounded(named[1]) if named is not None else ""


def state_in(document: dict[str, Any], fields: tuple[str, ...] = STATE_FIELDS) -> str:
    """The id of what the engine has to have for this body; ``""`` if it names nothing."""
    for name in fields:
        if name not in document:
            continue
        value = document[name]
        if type(value) is dict:
            value = value.get("id")
        if type(value) is str and value:
            return _bounded(value)
    return ""


def creates_response(path: str) -> bool:
    """Whether the answer to a request to ``path`` is a response that the engine may keep."""
    return "/responses" in path and path.partition("?")[0].endswith("/responses")


def response_id(beginning: bytes) -> str:
    """The id of the response that begins with these bytes, as JSON or as events; ``""`` if they show none."""
    found = _RESPONSE_ID.search(beginning)
    return found[1].decode("ascii") if found is not None else ""


def _bounded(name: str) -> str:
    return name if len(name) <= MAX_ID else ""
