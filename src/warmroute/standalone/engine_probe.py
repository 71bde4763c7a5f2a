"""Asks engines over HTTP what they are and which models they serve, for `warmroute up`."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import NamedTuple, TypeVar

from warmroute import http_client
from warmroute.engines.dialects import DIALECTS
from warmroute.pool.endpoint import LONGEST_MODEL_NAME

PROBES_AT_ONCE = 32
"""Engines that are asked at the same time."""
PROBE_SECONDS = 2.0
"""Longest time that an engine may take to say what it serves."""
MOST_PROBE_BYTES = 1 << 20
"""Bytes of an engine's answer that are read."""

Said = TypeVar("Said")


class ModelsAnswer(NamedTuple):
    """What an engine said when it was asked for its models."""

    model: str
    """The first one; empty if it does not say."""
    problem: str
    """Why it does not serve; empty if it does."""
    is_locked: bool = False
    """It does not say without an API key, or not with the one that it got."""


async def probe_models(targets: Sequence[str], token: str = "") -> list[ModelsAnswer]:
    """Ask each engine, an ``address:port``, which models it serves, with the bearer token if there is one."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return await _in_threads(lambda target: _models(target, headers), targets)


async def probe_kinds(targets: Sequence[str]) -> list[str | None]:
    """Each engine's type by its metrics page, as :data:`~warmroute.engines.dialects.DIALECTS` names it.

    Empty: none that is known. None: it shows no page.
    """
    return await _in_threads(_kind, targets)


async def _in_threads(ask: Callable[[str], Said], targets: Sequence[str]) -> list[Said]:
    """What ``ask`` gives for each, :data:`PROBES_AT_ONCE` at the same time."""
    if not targets:
        return []
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(min(PROBES_AT_ONCE, len(targets)), thread_name_prefix="probe") as threads:
        return list(await asyncio.gather(*(loop.run_in_executor(threads, ask, target) for target in targets)))


def _kind(target: str) -> str | None:
    pages: dict[str, bytes] = {}
    for name, dialect in DIALECTS.items():
        path = dialect.path
        if path not in pages:
            try:
                answer = http_client.exchange(
                    f"http://{target}{path}", seconds=PROBE_SECONDS, most_bytes=MOST_PROBE_BYTES
                )
            except OSError:
                return None
            pages[path] = answer.body if answer.status == HTTPStatus.OK else b""
        if re.search(rb"^(?:# (?:HELP|TYPE) )?" + re.escape(dialect.prefix.encode()), pages[path], re.MULTILINE):
            return name
    return "" if any(pages.values()) else None


def _models(target: str, headers: Mapping[str, str]) -> ModelsAnswer:
    url = f"http://{target}/v1/models"
    try:
        answer = http_client.exchange(url, headers=headers, seconds=PROBE_SECONDS, most_bytes=MOST_PROBE_BYTES)
    except OSError as error:
        return ModelsAnswer("", http_client.reason(error))
    if answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):  # it wants an API key, so it serves
        return ModelsAnswer("", "", is_locked=True)
    if answer.status != HTTPStatus.OK:
        return ModelsAnswer("", f"answers {answer.status} to GET /v1/models")
    try:
        model = json.loads(answer.body)["data"][0]["id"]
    except (ValueError, LookupError, TypeError, RecursionError):
        model = None
    if not isinstance(model, str) or len(model) > LONGEST_MODEL_NAME:
        return ModelsAnswer("", "answers GET /v1/models without a list of models")
    return ModelsAnswer(model, "")
