"""No body takes more memory than was known before it was decoded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from warmroute.request.limits import CONTAINER_VALUES, KEY_VALUES, MAX_JSON_VALUES, count_values, memory_needed

CHAT = "/v1/chat/completions"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of resident memory is Linux's"),
]

# Reads the body in a process of its own and prints by how much the resident memory grew at its peak. Allocators reserve
# more than they use: of tracemalloc's figure, up to 12 bytes per byte of body are address space without memory.
MEASURE = """
import re, sys
from pathlib import Path
from warmroute.request.parse import parse, parse_beginning
from warmroute.request.rewrite import replace_model

def kilobytes(name):
    return int(re.search(name + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

path, body = sys.argv[1], Path(sys.argv[2]).read_bytes()
grown = 0
for read in (parse, parse_beginning):
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    request = read(path, "application/json", body)
    replace_model(body, "other")
    grown = max(grown, kilobytes("VmHWM") - before)
    del request
print(grown * 1024)
"""


def filled(head: str, member: str, tail: str = "]}") -> bytes:
    """As many members as a body may have, but no more than 4 MiB of them."""
    values = 1 + member.count(",") + KEY_VALUES * member.count(":")
    values += CONTAINER_VALUES * (member.count("[") + member.count("{"))
    members = max(1, min((MAX_JSON_VALUES - 100) // values, (4 << 20) // len(member.encode())))
    return (head + ",".join([member] * members) + tail).encode()


def members(first: str, members: int, head: str) -> bytes:
    return (head + ",".join([f'"{first}{k:x}":1e{k % 300}' for k in range(members)]) + "}}").encode()


MESSAGES = '{"model":"m","messages":['
OTHER = '{"model":"m","messages":[{}],"x":['
TOOLS = '{"model":"m","messages":[{}],"tools":['
PROMPT = '{"model":"m","prompt":['
KEYS = '{"model":"m","messages":[{}],"x":{'
COMPLETIONS = "/v1/completions"
EMOJI = "\U0001f600"
LONG = EMOJI + "a" * (4 << 20)
LARGEST = {
    "objects": (CHAT, filled(MESSAGES, "{}")),
    "lists": (CHAT, filled(OTHER, "[]")),
    "members": (CHAT, filled(OTHER, '{"":0}')),
    "deep lists": (CHAT, filled(OTHER, "[" * 900 + "]" * 900)),
    "deep tools": (CHAT, filled(TOOLS, "[" * 240 + "]" * 240)),
    "keys": (CHAT, members("", 174_763, KEYS)),  # the table of the object has just been doubled
    "fields": (CHAT, members("", 174_763, MESSAGES.replace("[", '[{"x":{').replace("]", "}"))[:-1] + b"}]}"),
    "blocks": (CHAT, filled(MESSAGES + '{"role":"user","content":[', '{"a":{}}', "]}]}")),
    "images": (CHAT, filled(MESSAGES + '{"role":"user","content":[', '{"image":0}', "]}]}")),
    "roles": (CHAT, filled(MESSAGES, '{"role":""}')),
    "arguments": (CHAT, filled(MESSAGES, '{"tool_calls":[{"arguments":"{\\"a\\":[[],[],[],{},{},1,2,3]}"}]}')),
    "long arguments": (CHAT, filled(MESSAGES, '{"tool_calls":[{"arguments":"{\\"a\\":[' + "[]," * 20_000 + '0]}"}]}')),
    "calls of one message": (CHAT, filled(MESSAGES + '{"tool_calls":[', '{"arguments":"{\\"a\\":1}"}', "]}]}")),
    "urls": (CHAT, filled(MESSAGES + '{"content":[', '{"image":"https://a?' + "sig=1&" * 1_300 + '"}', "]}]}")),
    "token ids": (COMPLETIONS, filled(PROMPT, "300")),
    "lists of token ids": (COMPLETIONS, filled(PROMPT, "[300]")),
    "floats": (CHAT, filled(OTHER, "1e9")),
    "texts": (COMPLETIONS, filled(PROMPT, f'"{EMOJI}a"')),
    "one text": (CHAT, filled(MESSAGES, f'{{"role":"user","content":"{LONG}"}}')),
    "one tool": (CHAT, filled(TOOLS, f'"{LONG}"')),
    "one salt": (CHAT, f'{{"model":"m","messages":[1],"cache_salt":"{LONG}"}}'.encode()),
    "lenient": (CHAT, f'{{"model":"m","messages":[1],"documents":["\\ud800{LONG[:-100]}"]}}'.encode()),
    "lenient seed": (CHAT, f'{{"model":"m","messages":[1],"thinking":{{"type":"\\ud800{LONG[:-100]}"}}}}'.encode()),
    "lenient objects": (CHAT, filled(OTHER + "NaN,", "{}")),
    "ascii": (CHAT, filled(MESSAGES, '{"role":"user","content":"' + "a" * 1_000_000 + '"}')),
}


@pytest.mark.parametrize(("path", "body"), LARGEST.values(), ids=LARGEST)
def test_no_body_takes_more_memory_than_was_known_before(path: str, body: bytes, tmp_path: Path) -> None:
    assert count_values(body, MAX_JSON_VALUES) <= MAX_JSON_VALUES
    file = tmp_path / "body"
    file.write_bytes(body)
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, path, str(file)], capture_output=True, text=True, timeout=120, check=True
    )
    taken = int(measured.stdout)
    print(f"{len(body)} bytes of body: {taken / 1e6:.1f} MB taken, {memory_needed(body) / 1e6:.1f} MB foreseen")
    assert len(body) / 2 < taken <= memory_needed(body)
