"""A client of a picker's debug port, for commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from warmroute import http_client
from warmroute.errors import WarmrouteError

DEFAULT_URL = "http://127.0.0.1:9091"
"""The debug port of a picker on this machine."""


class DebugPortError(WarmrouteError):
    """The debug port cannot be reached or answers with an error; the message says which."""


def ask(base_url: str, path: str, query: Mapping[str, str | int], *, body: bytes | None = None) -> Any:
    """The JSON that the debug port at ``base_url`` answers: GET, or POST of JSON if there is a ``body``.

    Raises DebugPortError.
    """
    if not base_url.startswith("http://"):
        raise DebugPortError(f"{base_url!r} is not a URL like {DEFAULT_URL}")
    url = f"{base_url.rstrip('/')}{path}?{urlencode(query)}"
    try:
        if body is None:
            answer = http_client.exchange(url)
        else:
            headers = {"content-type": "application/json"}
            answer = http_client.exchange(url, method="POST", body=body, headers=headers)
        content = json.loads(answer.body)
    except (OSError, ValueError) as error:
        why = http_client.reason(error) if isinstance(error, OSError) else "no JSON"
        raise DebugPortError(
            f"no picker's debug port at {base_url} ({why}): --debug-url names another one; in Kubernetes: "
            "kubectl port-forward POD 9091"
        ) from error
    if answer.status != HTTPStatus.OK:
        said = content.get("error", "") if isinstance(content, dict) else ""
        raise DebugPortError(f"{base_url} answers {answer.status} {said}")
    return content
