"""Start, ports, statistics and end of the real Envoy."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from warmroute.errors import ConfigurationError
from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.child import Child, ChildError
from warmroute.standalone.envoy import EnvoyProcess, envoy_path
from warmroute.standalone.proxy_config import ProxyConfig

pytestmark = pytest.mark.integration


def configuration(**options: Any) -> dict[str, Any]:
    return bootstrap(ProxyConfig(epp=("127.0.0.1:1",), endpoints=("127.0.0.1:2",), **options))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_it_starts_on_free_ports_tells_its_statistics_and_ends(tmp_path: Path) -> None:
    proxy = EnvoyProcess(configuration(), tmp_path)
    async with proxy:
        ports = {int(url.rpartition(":")[2]) for url in (proxy.url, proxy.plain_url)}
        assert len(ports) == 2
        assert 0 not in ports
        stats = await proxy.stats("^cluster\\.epp\\.membership")
        assert stats["cluster.epp.membership_total"] == 1
        await proxy.wait_for_stat("cluster.epp.membership_healthy", 1)
        with pytest.raises(ChildError, match="no such name"):
            await proxy.wait_for_stat("no such name", 1, patience=0.05)
        pid = proxy.child.pid
        assert is_alive(pid)
    assert not is_alive(pid)
    assert proxy.child.returncode == 0


async def test_two_run_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with EnvoyProcess(configuration(), tmp_path / "a") as a, EnvoyProcess(configuration(), tmp_path / "b") as b:
        assert a.url != b.url


@pytest.mark.parametrize("name", ["port", "plain_port", "admin_port"])
async def test_a_taken_port_is_an_error_before_envoy_starts(name: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        proxy = EnvoyProcess(configuration(**{name: port}), tmp_path)
        with pytest.raises(ConfigurationError, match=f"port {port} .*in use"):
            await proxy.start()
    assert not (tmp_path / "envoy.log").exists()


async def test_an_envoy_that_gives_up_shows_the_end_of_its_log(tmp_path: Path) -> None:
    proxy = EnvoyProcess(configuration(), tmp_path)
    proxy.child.argv = (*proxy.child.argv, "--no-such-flag")
    with pytest.raises(ChildError, match=r"(?s)ended with status 1.*no-such-flag"):
        await proxy.start()


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 0.05; done"
    child = Child("stubborn", ["sh", "-c", script], tmp_path / "log")

    async def up() -> bool:
        return "up" in child.tail()

    async with child:
        await child.until(up, "up")
        await child.stop(grace=0.05)
        assert child.returncode == -9


async def test_a_program_that_is_not_there_is_a_child_error(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="cannot be started"):
        await Child("nobody", [str(tmp_path / "nobody")], tmp_path / "log").start()


def test_envoy_is_taken_from_the_path_or_its_absence_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert envoy_path().exists()
    monkeypatch.setitem(__import__("sys").modules, "envoy", None)
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / name))
    assert envoy_path() == tmp_path / "envoy"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'warmroute\[standalone\]'"):
        envoy_path()
