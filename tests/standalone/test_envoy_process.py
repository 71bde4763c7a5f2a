"""Start, ports, statistics and end of the real Envoy."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import eventually
from warmroute.errors import ConfigurationError
from warmroute.standalone import with_parent
from warmroute.standalone.bootstrap import bootstrap
from warmroute.standalone.child import Child, ChildError
from warmroute.standalone.envoy import EnvoyProcess, envoy_path
from warmroute.standalone.proxy_config import ProxyConfig

pytestmark = pytest.mark.integration


def configuration(**options: Any) -> dict[str, Any]:
    return bootstrap(ProxyConfig(epp=("127.0.0.1:1",), endpoints=("127.0.0.1:2",), **options))


def is_alive(pid: int) -> bool:
    """Whether the process runs: one that has ended and that nobody has waited for does not."""
    ended = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return ended.stdout.strip()[:1] not in ("", "Z")


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


async def test_an_envoy_that_does_not_come_up_in_time_is_ended(tmp_path: Path) -> None:
    proxy = EnvoyProcess(configuration(), tmp_path)
    with pytest.raises(ChildError, match=r"Envoy was not ready after 0\.01 s"):
        await proxy.start(patience=0.01)
    assert proxy.child.returncode is not None


async def test_a_ctrl_c_in_the_terminal_does_not_reach_a_child(tmp_path: Path) -> None:
    async with Child("sleep", ["sleep", "600"], tmp_path / "log") as child:
        assert os.getpgid(child.pid) != os.getpgid(0)


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 0.05; done"
    child = Child("stubborn", ["sh", "-c", script], tmp_path / "log")

    async def up() -> bool:
        return "up" in child.tail()

    async with child:
        await child.until(up, "up")
        await child.stop(grace=0.05)
        assert child.returncode == -9


PARENT = """
import asyncio, sys
from pathlib import Path
from warmroute.standalone.child import Child

async def main():
    children = [Child(str(k), [sys.executable, "-c", "import time; time.sleep(600)"], Path("log")) for k in range(2)]
    for child in children:
        await child.start()
    print(*(child.pid for child in children), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a parent that is killed")
async def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE, cwd=tmp_path
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in (await parent.stdout.readline()).split()]
    assert len(pids) == 2
    assert all(is_alive(pid) for pid in pids)
    parent.kill()
    await parent.wait()
    try:
        await eventually(lambda: not any(is_alive(pid) for pid in pids), "the end of the children", 10)
    finally:
        for pid in filter(is_alive, pids):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the program is started directly")
async def test_a_child_has_the_usual_signals_and_a_program_that_cannot_be_run_says_so(tmp_path: Path) -> None:
    child = Child("signals", ["grep", "SigIgn", "/proc/self/status"], tmp_path / "log")
    await child.start()
    assert await child.wait() == 0
    ignored = int(child.tail().split()[1], 16)  # a machine may start everything with others ignored
    assert not any(ignored >> number - 1 & 1 for number in (signal.SIGPIPE, signal.SIGXFSZ))
    (tmp_path / "text").write_bytes(b"\0")
    (tmp_path / "text").chmod(0o755)
    broken = Child("broken", [str(tmp_path / "text")], tmp_path / "log")
    await broken.start()
    assert await broken.wait() == with_parent.NOT_RUN
    assert "text cannot be run: Exec format error" in broken.tail()


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
