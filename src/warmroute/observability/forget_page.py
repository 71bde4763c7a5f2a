"""``POST /debug/forget``: an operator says that engines have lost their KV cache.

For what no metrics page shows at once: new weights in a running engine (``/reset_prefix_cache`` after a step of
reinforcement learning), or a cache that was deleted by hand. The picker then counts nothing as cached there. That can make
requests slower, so the page needs a bearer token.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path

import orjson

from warmroute.errors import ConfigurationError
from warmroute.observability.page_server import Page, PageError, Request, Routes
from warmroute.pool.endpoint import Endpoint
from warmroute.token_file import read_token

FORGET = "/debug/forget"
EVERY = "*"
"""Value of ``endpoint`` that names every endpoint."""


class ForgetPage:
    """The page. ``forget`` is called with each endpoint that a request names."""

    def __init__(
        self,
        token_file: Path | None,
        *,
        endpoints: Callable[[], Iterable[Endpoint]],
        forget: Callable[[Endpoint], None],
    ) -> None:
        """``token_file`` is read for each request; None: every request is refused."""
        self._token_file = token_file
        self._endpoints = endpoints
        self._forget = forget

    def posts(self) -> Routes:
        """The route for a :class:`~warmroute.observability.page_server.PageServer`."""
        return {FORGET: self._page}

    async def _page(self, request: Request) -> Page:
        self._authenticate(request)
        names = [value for name, value in request.query if name == "endpoint"]
        if len(names) != 1 or len(request.query) != 1:
            reason = f"give one parameter: endpoint, the id or name of an endpoint, or {EVERY} for every one"
            raise PageError(HTTPStatus.BAD_REQUEST, reason)
        name = names[0]
        found = [each for each in self._endpoints() if name in (EVERY, each.id, each.spec.name)]
        if not found:
            raise PageError(HTTPStatus.NOT_FOUND, "there is no such endpoint")
        for endpoint in found:
            self._forget(endpoint)
        return Page(orjson.dumps({"forgotten": sorted(each.id for each in found)}) + b"\n", "application/json")

    def _authenticate(self, request: Request) -> None:
        """Raise PageError unless the request has the token."""
        if self._token_file is None:
            raise PageError(HTTPStatus.FORBIDDEN, "off: --debug-token-file is not given")
        try:
            token = read_token(self._token_file)
        except ConfigurationError as error:
            raise PageError(HTTPStatus.FORBIDDEN, str(error)) from error
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode("latin-1", "replace"), f"Bearer {token}".encode("latin-1")):
            raise PageError(HTTPStatus.UNAUTHORIZED, headers={"WWW-Authenticate": "Bearer"})
