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


def ask(
    base_url: str,
    path: str,
    query: Mapping[str, str | int],
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """The JSON that the debug port at ``base_url`` answers: GET, or POST if there is a ``body``.

    ``base_url`` may be without ``http://``. Raises DebugPortError.
    """
    base_url = base_url if "://" in base_url else f"http://{base_url}"
    url = f"{base_url.rstrip('/')}{path}?{urlencode(query)}"
    try:
        if body is None:
            answer = http_client.exchange(url)
        else:
            answer = http_client.exchange(url, method="POST", body=body, headers=headers)
    except ValueError:
        raise DebugPortError(f"{base_url!r} is not a URL like {DEFAULT_URL}") from None
    except OSError as error:
        raise DebugPortError(
            f"no picker's debug port at {base_url} ({http_client.reason(error)}): --debug-url names another one; in "
            "Kubernetes: kubectl port-forward POD 9091"
        ) from error
    try:
        content = json.loads(answer.body)
    except ValueError:
        content = None
    if content is not None and answer.status == HTTPStatus.OK:
        return content
    said = content.get("error") if isinstance(content, dict) else None
    if answer.status == HTTPStatus.NOT_FOUND or not isinstance(said, str):  # the debug port says what is wrong as text
        raise DebugPortError(
            f"{base_url} is not a picker's debug port (it answers {answer.status}); the default is {DEFAULT_URL}"
        )
    raise DebugPortError(f"{base_url} answers {answer.status}: {said}")
