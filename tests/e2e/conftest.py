"""Fixtures for tests with a real Envoy. Everything listens on free ports of 127.0.0.1 and ends with the test.

A test starts the parts that it needs, in the order in which they depend on one another::

    async def test_obeys(envoy, tmp_path):
        async with backends(3) as pods, scripted_picker(script) as epp, envoy(pods, epp, response_headers=True) as proxy:
            answer = await exchange(proxy.url, body=b"{}")

``backends``, ``scripted_picker``, ``warmroute_serve`` and ``exchange`` are in ``tests.fixtures.envoy``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.fixtures.envoy.backends import Backend
from tests.fixtures.envoy.ext_proc_filter import OPTIONS, change_ext_proc
from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.envoy import EnvoyProcess
from warmroute.standalone.proxy_config import ProxyConfig


class StartEnvoy(Protocol):
    """What the fixture ``envoy`` gives."""

    def __call__(self, pods: Sequence[Backend | str], *epp: str, **options: Any) -> EnvoyProcess:
        """An Envoy before ``pods`` that asks the pickers at ``epp``; to be entered with ``async with``.

        ``options`` are the fields of :class:`~warmroute.standalone.proxy_config.ProxyConfig`, and those of
        :func:`~tests.fixtures.envoy.ext_proc_filter.change_ext_proc`.
        """


@pytest.fixture(scope="session")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> StartEnvoy:
    """Builds Envoys; each has a directory of its own for its configuration and log."""
    numbers = itertools.count()

    def build(pods: Sequence[Backend | str], *epp: str, **options: Any) -> EnvoyProcess:
        directory: Path = tmp_path_factory.mktemp(f"envoy-{next(numbers)}-")
        endpoints = () if "endpoints_file" in options else tuple(p if isinstance(p, str) else p.target for p in pods)
        of_filter = {name: options.pop(name) for name in OPTIONS & options.keys()}
        tree = bootstrap(ProxyConfig(epp=epp, endpoints=endpoints, **options))
        change_ext_proc(tree, **of_filter)
        return EnvoyProcess(tree, directory)

    return build
