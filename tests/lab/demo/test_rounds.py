"""The two requests are what a shell makes of the walk-through's text."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from warmroute_lab.demo.rounds import ROUND1, ROUND2

WALK_THROUGH = Path(__file__).parents[4] / "shared" / "reference" / "seed.txt"


@pytest.mark.parametrize(("name", "expected"), [("round1.txt", ROUND1), ("round2.txt", ROUND2)])
def test_bash_and_curl_send_these_bytes(name, expected, tmp_path):
    if not WALK_THROUGH.exists():
        pytest.skip("the walk-through's text is not beside this repository")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    (command,) = re.findall(rf"echo '.*> {re.escape(name)}", WALK_THROUGH.read_text())
    subprocess.run([bash, "-c", command], cwd=tmp_path, check=True)
    sent_by_curl = (tmp_path / name).read_bytes().replace(b"\r", b"").replace(b"\n", b"")
    assert sent_by_curl == expected


def test_the_second_repeats_the_first_and_goes_on():
    first, second = json.loads(ROUND1), json.loads(ROUND2)
    assert second["messages"][:1] == first["messages"]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    assert (first["max_tokens"], second["max_tokens"]) == (24, 3)
