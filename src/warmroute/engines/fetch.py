"""Fetch metrics pages over HTTP, on connections that stay open."""

from __future__ import annotations

import os

import aiohttp
from yarl import URL

from warmroute.errors import ScrapeError
from warmroute.settings import Settings

LARGEST_PAGE = 16 << 20
"""Bytes beyond which an answer is no metrics page. A real one has 50 to 300 kB."""
KEEP_ALIVE = 30.0
"""Seconds for which an unused connection is kept: longer than any interval between scrapes is by default."""


def system_error(error: aiohttp.ClientConnectorError) -> str:
    """What the system said of a connection that failed. The error's own text speaks of ssl even where there is none."""
    cause = error.os_error
    return os.strerror(cause.errno) if cause.errno else str(cause)


class PageFetcher:
    """GET with a time limit; at most one request to an endpoint at a time is expected. Use it in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._session = aiohttp.ClientSession(
            # The whole page costs the engine less without compression, and the network is near.
            headers={"Accept-Encoding": "identity", "Accept": "text/plain"},
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=KEEP_ALIVE,
                ssl=not settings.model_server_metrics_https_insecure_skip_verify,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def __call__(self, url: str, seconds: float) -> tuple[int, bytes]:
        """Status and body of the page, to be had within ``seconds``; redirects are not followed.

        Raises TimeoutError, OSError if the peer cannot be reached or hangs up, and ScrapeError if what it says is not
        HTTP, cannot be trusted or is too long.
        """
        try:
            async with self._session.get(
                URL(url, encoded=True), allow_redirects=False, timeout=aiohttp.ClientTimeout(total=seconds)
            ) as response:
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > LARGEST_PAGE:
                        raise ScrapeError(f"the metrics page is larger than {LARGEST_PAGE} bytes")
                return response.status, bytes(body)
        except aiohttp.ClientSSLError as error:
            raise ScrapeError(f"no TLS connection to the metrics page: {error}") from error
        except aiohttp.ClientConnectorError as error:
            raise ConnectionError(system_error(error)) from error
        except (aiohttp.ServerDisconnectedError, ConnectionError) as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        except aiohttp.ClientError as error:
            if isinstance(error, OSError):
                raise
            raise ScrapeError(f"the engine does not answer in HTTP: {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()
