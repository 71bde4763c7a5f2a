"""The pages of the debug port: endpoints, recent decisions, a dry run and settings, as JSON.

Each page is bounded by ``limit`` and rendered in short slices, so that reading it delays no request, whatever the number of
endpoints. Figures that depend on the content of the prefix index are coarse (see
:data:`~warmroute.routing.decision_record.CACHED_STEP`).
"""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias, TypeVar, get_args

import orjson

from warmroute.observability.endpoint_reading import EndpointReading
from warmroute.observability.explanation import REASONS
from warmroute.observability.forget_page import FORGET
from warmroute.observability.page_server import Page, PageError, Request, Routes, Slices
from warmroute.pool.endpoint import EndpointState, endpoint_state
from warmroute.request.rejections import Rejection
from warmroute.routing.decision_record import DecisionRecord
from warmroute.routing.endpoint_load import EndpointLoad
from warmroute.settings import Settings

Item = TypeVar("Item")
DryRun = Callable[[Mapping[str, str], Callable[[], Awaitable[bytes]]], Awaitable[DecisionRecord | Rejection]]
"""From headers and a function that reads the body to the decision that the request would get."""

LONGEST_PARAMETER = 256
"""Characters of a query parameter's value."""
TOTAL_HEADER = "X-Total-Count"
"""Response header with the number of items that match, of which the page shows at most ``limit``."""


@dataclass(frozen=True, slots=True)
class Number:
    """A query parameter that is a whole number within bounds."""

    default: int
    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.least} to {self.most}, default {self.default}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """A query parameter that is one of some words."""

    words: Sequence[str]

    def __str__(self) -> str:
        return f"{', '.join(self.words[:-1])} or {self.words[-1]}"


Parameters: TypeAlias = Mapping[str, Number | OneOf | str]
"""Query parameters by name, each with its bounds, its words, or what it is."""

_PAGING = {"limit": Number(20, 1, 100), "offset": Number(0, 0, 1_000_000)}
ENDPOINT_PARAMETERS: Parameters = {
    **_PAGING,
    "limit": Number(50, 1, 200),
    "endpoint": "id or name of the endpoint",
    "state": OneOf(get_args(EndpointState)),
    "pretty": "1: indented",
}
DECISION_PARAMETERS: Parameters = {
    **_PAGING,
    "since": Number(0, 0, 1_000_000),
    "candidates": Number(5, 1, 50),
    "request": "request id",
    "model": "model of the request",
    "endpoint": "id or name of the chosen endpoint",
    "reason": OneOf(tuple(REASONS)),
    "pretty": "1: indented",
}
EXPLAIN_PARAMETERS: Parameters = {
    "path": "path of the request, default /v1/chat/completions",
    "candidates": Number(5, 1, 50),
    "pretty": "1: indented",
}
EXPLAIN = "/debug/explain"
DEFAULT_PATH = "/v1/chat/completions"
SETTINGS_PARAMETERS: Parameters = {"pretty": "1: indented"}

PAGES: Mapping[str, tuple[str, Parameters]] = {
    "/debug/endpoints": (
        "the endpoints: state, passive health, load, share of the prefix index, expected and measured hits, last scrape",
        ENDPOINT_PARAMETERS,
    ),
    "/debug/decisions": (
        "the latest decisions, newest first: the chosen endpoint and the next best ones with the terms of their cost",
        DECISION_PARAMETERS,
    ),
    "/debug/settings": ("the settings in force", SETTINGS_PARAMETERS),
}
"""Each page with its description and its query parameters."""


class DebugPages:
    """The pages under ``/debug``. The callables are called for each request."""

    def __init__(
        self,
        *,
        loads: Callable[[], Sequence[EndpointLoad]],
        reading: Callable[[EndpointLoad, float], EndpointReading | None],
        decisions: Callable[[], Sequence[DecisionRecord]],
        dry_run: DryRun,
        settings: Callable[[], Settings],
        clock: Callable[[], float],
    ) -> None:
        self._loads = loads
        self._reading = reading
        self._records = decisions
        self._dry_run = dry_run
        self._settings = settings
        self._clock = clock

    def routes(self) -> Routes:
        """The routes for a :class:`~warmroute.observability.page_server.PageServer`."""
        return {
            "/debug": _index,
            "/debug/endpoints": self._endpoints_page,
            "/debug/decisions": self._decisions_page,
            "/debug/settings": self._settings_page,
        }

    def posts(self) -> Routes:
        """The routes of requests with a body."""
        return {EXPLAIN: self._explain_page}

    async def _endpoints_page(self, request: Request) -> Page:
        query = Query(request, ENDPOINT_PARAMETERS)
        name, state = query.text("endpoint"), query.text("state")
        slices = Slices()
        now = self._clock()
        found = []
        for load in self._loads():
            if _names(name, load.endpoint.id) and state in ("", endpoint_state(load.endpoint)):
                found.append(load)
            await slices.pause()
        items = []
        for load in query.page(found):
            reading = self._reading(load, now)
            if reading is not None:  # else it has left meanwhile
                items.append(query.json(reading.plain(now)))
            await slices.pause()
        return _listed(items, total=len(found))

    async def _decisions_page(self, request: Request) -> Page:
        query = Query(request, DECISION_PARAMETERS)
        wanted = {
            "request_id": query.text("request"),
            "model": query.text("model"),
            "coarse_reason": query.text("reason"),
        }
        name, since, candidates = query.text("endpoint"), query.number("since"), query.number("candidates")
        slices = Slices()
        now = self._clock()
        found = []
        for record in self._records():
            if (
                _names(name, record.chosen)
                and (not since or now - record.at <= since)
                and all(not value or getattr(record, attribute) == value for attribute, value in wanted.items())
            ):
                found.append(record)
            await slices.pause()
        items = []
        for record in query.page(found):
            items.append(query.json(record.explain(now, candidates)))
            await slices.pause()
        return _listed(items, total=len(found))

    async def _explain_page(self, request: Request) -> Page:
        """Where a request with this body and these headers would go."""
        query = Query(request, EXPLAIN_PARAMETERS)
        most = self._settings().max_body_bytes
        headers = {**request.headers, ":path": query.text("path") or DEFAULT_PATH}
        outcome = await self._dry_run(headers, lambda: request.body(most))
        if isinstance(outcome, Rejection):
            rejected = {"status": outcome.status, "reason": outcome.reason, "message": outcome.message}
            return Page(query.json({"rejected": rejected}) + b"\n", "application/json")
        explained = outcome.explain(self._clock(), query.number("candidates"))
        return Page(query.json(explained) + b"\n", "application/json")

    async def _settings_page(self, request: Request) -> Page:
        body = Query(request, SETTINGS_PARAMETERS).json(self._settings().model_dump(mode="json")) + b"\n"
        return Page(body, "application/json")


class Query:
    """The query parameters of one request. Raises PageError (400) for any that is unknown, repeated or out of bounds."""

    def __init__(self, request: Request, known: Parameters) -> None:
        self._known = known
        self._given: dict[str, str] = {}
        for name, value in request.query:
            if name not in known:
                raise _bad_request(f"unknown parameter; the parameters are {', '.join(known)}")
            if name in self._given:
                raise _bad_request(f"{name} is given twice")
            if len(value) > LONGEST_PARAMETER:
                raise _bad_request(f"{name} is longer than {LONGEST_PARAMETER} characters")
            self._given[name] = value
        for name, kind in known.items():
            if isinstance(kind, Number):
                self.number(name)
            if isinstance(kind, OneOf) and self.text(name) and self.text(name) not in kind.words:
                raise _bad_request(f"{name} must be {kind}")

    def text(self, name: str) -> str:
        """A parameter as text; empty if it is not given."""
        return self._given.get(name, "")

    def number(self, name: str) -> int:
        """A parameter as a number; its default if it is not given."""
        kind = self._known[name]
        assert isinstance(kind, Number)
        text = self._given.get(name)
        if text is None:
            return kind.default
        if not (text.isascii() and text.isdigit() and len(text) < 10 and kind.least <= int(text) <= kind.most):
            raise _bad_request(f"{name} must be a whole number from {kind.least} to {kind.most}")
        return int(text)

    def page(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that ``offset`` and ``limit`` ask for."""
        offset = self.number("offset")
        return items[offset : offset + self.number("limit")]

    def json(self, data: object) -> bytes:
        """``data`` as JSON, indented if ``pretty`` is given."""
        pretty = self.text("pretty") not in ("", "0", "false")
        return orjson.dumps(data, default=str, option=orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if pretty else 0))


def _bad_request(text: str) -> PageError:
    return PageError(HTTPStatus.BAD_REQUEST, text)


def _names(wanted: str, endpoint_id: str) -> bool:
    """Whether ``wanted`` is empty, the endpoint's id (``namespace/name``) or its name."""
    return not wanted or endpoint_id == wanted or endpoint_id.partition("/")[2] == wanted


def _listed(items: Iterable[bytes], *, total: int) -> Page:
    body = b"[" + b",\n".join(items) + b"]\n"
    return Page(body, "application/json", headers={TOTAL_HEADER: str(total)})


async def _index(_: Request) -> Page:
    pages = [  # the links are relative, as the pages may be behind a proxy
        f'<li><a href="{path[1:]}?pretty=1">{path}</a>: {html.escape(text)}{_described(parameters)}</li>'
        for path, (text, parameters) in PAGES.items()
    ]
    pages += [
        f"<li>POST {EXPLAIN}: where a request with this body would go, and why{_described(EXPLAIN_PARAMETERS)}</li>",
        f"<li>POST {FORGET}?endpoint=NAME: the endpoint has lost its KV cache (<code>--debug-token-file</code>)</li>",
        "<li>/debug/live, /debug/live/history: what the live page reads once a second</li>",
    ]
    page = f"<!doctype html><title>Warmroute</title><h1>Warmroute: debug pages</h1><ul>{''.join(pages)}</ul>"
    return Page(page.encode(), "text/html; charset=utf-8")


def _described(parameters: Parameters) -> str:
    rows = (f"<li><code>{name}</code>: {html.escape(str(kind))}</li>" for name, kind in parameters.items())
    return f"<ul>{''.join(rows)}</ul>"
