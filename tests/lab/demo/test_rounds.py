"""The two requests are what a shell makes of the walk-through's text."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.recordings import walk_through_commands
from warmroute.routing.decision_record import CACHED_STEP
from warmroute_lab.demo.rounds import LONG, ROUND1, ROUND2

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("name", "expected"), [("round1.txt", ROUND1), ("round2.txt", ROUND2)])
def test_bash_and_curl_send_these_bytes(name: str, expected: Any, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    (command,) = (command for command in walk_through_commands() if command.endswith(f"> {name}"))
    subprocess.run([bash, "-c", command], cwd=tmp_path, check=True)
    sent_by_curl = (tmp_path / name).read_bytes().replace(b"\r", b"").replace(b"\n", b"")
    assert sent_by_curl == expected


def test_the_long_one_is_above_the_rounding_step_of_the_debug_pages() -> None:
    (message,) = json.loads(LONG)["messages"]
    assert 2 * CACHED_STEP < len(message["content"]) / 4 < 4 * CACHED_STEP


def test_the_second_repeats_the_first_and_goes_on() -> None:
    first, second = json.loads(ROUND1), json.loads(ROUND2)
    assert second["messages"][:1] == first["messages"]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    assert (first["max_tokens"], second["max_tokens"]) == (24, 3)
