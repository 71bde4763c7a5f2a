"""The Kubernetes API server: requests and watches as plain JSON.

The official client finds the cluster, its certificates and its tokens, and renews them. Its model classes are not used:
decoding into them takes about 100 times as long as :mod:`orjson` (tests/kubernetes/test_load.py bounds the cost).
Importing this module raises ConfigurationError if the client is not installed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from urllib.parse import urlencode

import orjson

from warmroute.errors import ConfigurationError, WarmrouteError
from warmroute.kubernetes.objects import Object

try:
    import aiohttp
    from kubernetes.aio.client import ApiClient, Configuration
    from kubernetes.aio.client.exceptions import ApiException
    from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
except ModuleNotFoundError as error:
    raise ConfigurationError(
        "--pool-name needs the Kubernetes client, version 36 or later: pip install 'warmroute[kubernetes]'"
    ) from error

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
UNREACHABLE = 0
"""Status of an :class:`ApiError` without an answer."""
NO_ANSWER_IN_TIME = 504
"""Status of an :class:`ApiError` if the API server took the request and did not answer within the limit."""
MAX_EVENT_BYTES = 16 << 20
"""Longest line of a watch. etcd stores objects of at most 1.5 MiB by default."""
MAX_ANSWER_BYTES = 32 << 20
"""Longest answer that is not a watch: a page of 200 pods has about 1 MB."""
MAX_REASON_BYTES = 64 << 10
"""Bytes read of an answer with an error status."""


class ApiError(WarmrouteError):
    """The API server did not answer (``status`` is :data:`UNREACHABLE`), or answered with an error status or with what
    cannot be used (``status`` is the answer's, 200 for example). ``retry_after``: the seconds to wait that it asks for."""

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Cluster:
    """Client of one API server. Call :meth:`find` before any request."""

    def __init__(self) -> None:
        self._client: ApiClient | None = None
        self._connecting = asyncio.Lock()
        self._kubeconfig: str | None = None
        self._away = False

    def find(self, environ: Mapping[str, str] = os.environ) -> None:
        """Choose the in-cluster configuration, else KUBECONFIG, else ~/.kube/config.

        Checks only that it exists; it is read with the first request. Raises ConfigurationError if there is none.
        """
        if "KUBERNETES_SERVICE_HOST" in environ:
            return
        paths = environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
        if not any(Path(path).is_file() for path in paths.split(os.pathsep)):
            raise ConfigurationError(f"no cluster found: not running in a pod, and there is no {paths} (KUBECONFIG)")
        self._kubeconfig = paths

    async def get(self, path: str, **query: str | int) -> Object:
        """One object or list. Raises ApiError."""
        return await self._exchange("GET", path, query)

    async def create(self, path: str, body: Object) -> Object:
        """POST ``body`` to a collection; the object as it was stored. Raises ApiError."""
        return await self._exchange("POST", path, {}, body)

    async def update(self, path: str, body: Object) -> Object:
        """PUT ``body`` over an object; the object as it was stored. Raises ApiError, 409 if it has changed meanwhile."""
        return await self._exchange("PUT", path, {}, body)

    async def watch(self, path: str, seconds: int, **query: str | int) -> AsyncGenerator[list[bytes], None]:
        """The lines of a watch, in the batches in which they arrive; the first batch is empty and says that it has begun.
        Ends when the server ends it, by ``seconds``.

        Raises ApiError, also if the connection breaks or is still open 15 s after ``seconds``.
        """
        limits = aiohttp.ClientTimeout(total=seconds + 15, connect=5)
        query |= {"watch": 1, "allowWatchBookmarks": "true", "timeoutSeconds": seconds}
        response = await self._send("GET", path, query, limits=limits)
        try:
            yield []
            rest = bytearray()
            async for data in response.content.iter_any():
                first, *others = data.split(b"\n")
                rest += first
                if len(rest) > MAX_EVENT_BYTES:
                    raise ApiError(response.status, f"{path}: an event is longer than {MAX_EVENT_BYTES} bytes")
                if others:
                    *lines, last = others
                    yield [bytes(rest), *lines]
                    rest = bytearray(last)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(UNREACHABLE, f"{path}: {error!r}") from error
        finally:
            response.close()

    async def close(self) -> None:
        """Close the connections. A later request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()  # type: ignore[no-untyped-call]

    async def _exchange(
        self, method: str, path: str, query: Mapping[str, str | int], body: Object | None = None
    ) -> Object:
        response = await self._send(method, path, query, body, limits=REQUEST_TIMEOUT)
        try:
            content = await _start_of(response, MAX_ANSWER_BYTES + 1)
            if len(content) > MAX_ANSWER_BYTES:
                raise ApiError(response.status, f"{path}: the answer is longer than {MAX_ANSWER_BYTES} bytes")
            answer: Object = orjson.loads(content)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(response.status, f"{path}: the answer broke off: {error!r}") from error
        except orjson.JSONDecodeError as error:
            raise ApiError(response.status, f"{path}: the answer is not JSON: {error}") from error
        finally:
            response.release()
        if not isinstance(answer, dict):
            raise ApiError(response.status, f"{path}: the answer is not a JSON object")
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int],
        body: Object | None = None,
        *,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        try:
            client = self._client or await self._connect()
            _, url, headers, _, _ = await client.param_serialize(
                method, path, header_params={"Accept": "application/json"}, auth_settings=["BearerToken"]
            )
            url = f"{url}?{urlencode(query)}" if query else url
            answer = await client.call_api(method, url, headers, body, _request_timeout=limits)
            if answer.status == 401:
                await self._renew(client)
        except (aiohttp.ClientError, TimeoutError, OSError, ApiException, ConfigException) as error:
            if type(error) is TimeoutError:  # connected, else it is one of aiohttp's
                raise ApiError(NO_ANSWER_IN_TIME, f"{path}: no answer within {limits.total:g} s") from error
            self._lost(error)
            if isinstance(error, aiohttp.ClientSSLError):
                await self._renew(client)
            raise ApiError(UNREACHABLE, f"{path}: {error!r}") from error
        self._found()
        response: aiohttp.ClientResponse = answer.response
        if response.ok:
            return response
        raise ApiError(response.status, await _reason(path, response), _retry_after(response))

    async def _connect(self) -> ApiClient:
        async with self._connecting:
            if self._client is None:
                configuration = Configuration()
                # As kubectl: certificate authorities of many clusters fail the strict checks that Python 3.13 turned on.
                configuration.disable_strict_ssl_verification = True
                await self._configure(configuration)
                self._client = ApiClient(configuration)
            return self._client

    async def _renew(self, client: ApiClient) -> None:
        """Read token and certificates again: they may have been renewed on disk. Authorities trusted before stay so."""
        configuration, context = client.configuration, client.rest_client.ssl_context
        try:
            await self._configure(configuration)
            if configuration.ssl_ca_cert or configuration.ca_cert_data:
                context.load_verify_locations(configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
            if configuration.cert_file:
                context.load_cert_chain(configuration.cert_file, configuration.key_file)
        except (OSError, ConfigException) as error:
            logger.debug("credentials not read again", extra={"fields": {"error": repr(error)}})

    async def _configure(self, configuration: Configuration) -> None:
        if self._kubeconfig is None:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await load_kube_config(  # type: ignore[no-untyped-call]
                self._kubeconfig, client_configuration=configuration, persist_config=False
            )

    def _lost(self, error: Exception) -> None:
        """The API server cannot be reached: told once until it is back."""
        if not self._away:
            self._away = True
            broken = isinstance(error, ConfigException)
            logger.warning(
                "%s; using the last known state, if any",
                "the configuration of the cluster cannot be used" if broken else "the API server cannot be reached",
                extra={"fields": {"error": str(error) or repr(error)}},
            )

    def _found(self) -> None:
        """The API server answers."""
        if self._away:
            self._away = False
            logger.info("the API server can be reached again")


async def _reason(path: str, response: aiohttp.ClientResponse) -> str:
    """Why a request was answered with an error status, as the answer says it. Ends the answer."""
    try:
        text = (await _start_of(response, MAX_REASON_BYTES)).decode(errors="replace")
        return str(orjson.loads(text)["message"])
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError, TypeError):
        return f"{path}: {response.status} {response.reason}"
    finally:
        response.release()


async def _start_of(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The first ``most`` bytes of the body, or all of it. The connection is closed if there is more."""
    content = bytearray()
    async for data in response.content.iter_any():
        content += data
        if len(content) >= most:
            response.close()
            break
    return bytes(content[:most])


def _retry_after(response: aiohttp.ClientResponse) -> float:
    seconds = response.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() and len(seconds) <= 6 else 0.0
