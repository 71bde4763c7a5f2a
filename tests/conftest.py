"""Layers, property-test profiles and limits that all tests share.

Every test has one layer, selected by ``-m``:

- ``e2e``: whole processes together, most with a real Envoy. All of ``tests/e2e``, and modules that carry the mark.
- ``integration``: sockets, child processes or seconds of computing. Modules and tests that carry the mark.
- ``unit``: everything else. A unit test that binds or connects a socket or starts a process fails.

``HYPOTHESIS_PROFILE=thorough`` draws more examples for each property than the default profile, ``fast``. Each profile draws
the same examples in every run.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

E2E = Path(__file__).parent / "e2e"

FORBIDDEN_TO_UNITS = frozenset({"socket.bind", "socket.connect", "subprocess.Popen", "os.fork", "os.posix_spawn"})
"""Audit events: https://docs.python.org/3/library/audit_events.html"""

_unit_test_runs = False

for name, examples in (("fast", 20), ("thorough", 300)):
    settings.register_profile(
        name, max_examples=examples, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if E2E in item.path.parents:
            item.add_marker("e2e")
        elif not any(item.iter_markers("integration")) and not any(item.iter_markers("e2e")):
            item.add_marker("unit")


def pytest_collection_finish() -> None:
    """Collected tests stay to the end: the garbage collector need not look at them again (a fifth of the unit layer)."""
    gc.freeze()


def _forbid_io(event: str, arguments: tuple[Any, ...]) -> None:
    if _unit_test_runs and event in FORBIDDEN_TO_UNITS:
        pytest.fail(f"a unit test does {event}: mark the test or its module with pytest.mark.integration")


sys.addaudithook(_forbid_io)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    global _unit_test_runs  # noqa: PLW0603
    _unit_test_runs = any(item.iter_markers("unit"))
    try:
        return (yield)
    finally:
        _unit_test_runs = False


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Leave the process's logging as it was: a program that a test runs sets it up for itself."""
    root, package = logging.getLogger(), logging.getLogger("warmroute")
    handlers, levels = root.handlers[:], (root.level, package.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    package.setLevel(levels[1])
    logging.captureWarnings(False)


@pytest.fixture
def a_terminal() -> Iterator[None]:
    """SIGHUP and SIGINT are not ignored, by this process and its children, even if the tests run under nohup or in the
    background of a shell."""
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGHUP, hang_up)
    signal.signal(signal.SIGINT, interrupt)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A lone surrogate in captured output would end a worker of pytest-xdist, which sends reports as UTF-8."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
