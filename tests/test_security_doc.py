"""docs/security.md: the tests that it names exist, its headers are those of the code, its example is a valid patch."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from warmroute.engines.fetch import MOST_CHUNKS, MOST_FRAMING_BYTES, MOST_HEAD_BYTES, MOST_INTERIM
from warmroute.engines.models import MOST_BYTES
from warmroute.engines.page import MOST_LINES, MOST_SAMPLE_BYTES
from warmroute.engines.scraper import CONCURRENCY, SILENT_CONCURRENCY
from warmroute.extproc.headers import (
    CONTROL,
    MAX_NAME,
    MAX_VALUE,
    MAX_WORD,
    MOST_READ,
    MOST_VISIBLE,
    MOST_VISIBLE_BYTES,
    OBJECTIVES,
)
from warmroute.extproc.server import MESSAGE_OVERHEAD, OTHER_CALLS
from warmroute.extproc.session import HEADERS_FREELY, HEADERS_MEMORY
from warmroute.extproc.subset import MAX_ENTRIES, MAX_ENTRY
from warmroute.grpc_server import server as grpc
from warmroute.grpc_server.connection import (
    HELD_FREELY,
    LONG_MESSAGE,
    MAX_HEADERS,
    MOST_AT_ONCE,
    MOST_BLOCKED_AT_ONCE,
    MOST_SIZE_UPDATES,
    STREAM_WINDOW,
)
from warmroute.kubernetes.api import MAX_ANSWER_BYTES, MAX_EVENT_BYTES
from warmroute.kubernetes.informer import PAGE_SIZE
from warmroute.observability import page_server as pages
from warmroute.observability.live.feed import MOST_DECISIONS
from warmroute.observability.live.shared_prefixes import SIZE
from warmroute.pool.endpoint import LONGEST_MODEL_NAME, MOST_SERVED_MODELS
from warmroute.pool.pool import RETENTION
from warmroute.prefix.chain import MAX_CHECKPOINTS
from warmroute.request.content_encoding import MAX_RATIO, SMALL
from warmroute.request.limits import LENIENT_BODY, LENIENT_VALUES, LONG_BODY, MANY_CONTAINERS
from warmroute.request.media import MAX_PARAMETERS, MAX_URL
from warmroute.request.prompt import MAX_ARGUMENTS, MAX_SIGNED_MEDIA
from warmroute.request.rewrite import MAX_MODELS
from warmroute.routing.confirmation import MOST_OPEN
from warmroute.routing.known_models import MOST_ADAPTER_NAMES
from warmroute.routing.router import MOST_MATCHED_PROMPTS
from warmroute.runtime import FILE_DESCRIPTORS
from warmroute.settings import Settings
from warmroute.shared_state.decision_columns import MOST_DECISIONS as DECISIONS_OF_A_BATCH
from warmroute.shared_state.nats_log import LARGEST_BATCH
from warmroute.shared_state.outbox import MOST_WAITING
from warmroute.token_file import MOST_TOKEN_BYTES
from warmroute.yaml_file import LARGEST_FILE

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.partition("## Inputs")[2].partition("## Who")[0].splitlines() if line.startswith("| ")][
    1:
]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


def test_every_input_names_a_test() -> None:
    assert len(ROWS) > 20
    for row in ROWS:
        assert re.search(r"`tests/[\w/]+\.py::test_\w+` *\|$|`tests/[\w/]+\.py::test_\w+`", row), row


BOUNDS = {
    "Body: size": f"({Settings().max_body_bytes >> 20} MiB)",
    "Body: memory of all at once": f"({Settings().body_memory >> 20} MiB)",
    "Body: compressed": f"{SMALL >> 10} KiB and {MAX_RATIO} times its length",
    "Body: time to read it": f"from {LONG_BODY >> 10} KiB on, or with {MANY_CONTAINERS:,} .*"
    f"of {MAX_SIGNED_MEDIA:,} images .*{MAX_URL:,} characters and {MAX_PARAMETERS} parameters.*"
    f"{LENIENT_BODY >> 20} MiB and {LENIENT_VALUES:,} values",
    "Body: arguments": f"{MAX_ARGUMENTS >> 10} KiB of them",
    "Body: many prompts": f"{MOST_MATCHED_PROMPTS} are matched",
    'Body: many `"model"` keys': f"{MAX_MODELS} keys",
    "Body: time to arrive": f"{Settings().body_timeout:.0f} s",
    "Request headers that the picker reads": f"the first {MOST_READ:,} .*{MAX_VALUE:,} characters, "
    f".*{MAX_NAME:,}, .*{MAX_WORD}, .*"
    f"{HEADERS_FREELY >> 10} KiB of a request freely, {HEADERS_MEMORY >> 20} MiB",
    "Request headers that custom strategies see": f"the first {MOST_VISIBLE}, values up to {MAX_VALUE:,} characters,"
    f" {MOST_VISIBLE_BYTES >> 10} KiB",
    "Subset hint": f"{MAX_ENTRIES:,} entries of {MAX_ENTRY} characters",
    "ext_proc streams": f"({Settings().max_streams:,})",
    "gRPC connections: frames": f"{MAX_HEADERS >> 10} KiB of a frame and of a call's headers, {STREAM_WINDOW >> 10} KiB"
    f" .*{MOST_SIZE_UPDATES} updates",
    "gRPC connections: their number": f"{grpc.MOST_CONNECTIONS} on a port, .*{grpc.HANDSHAKE_TIMEOUT:.0f} s at most",
    "gRPC connections: many small frames": f"{MOST_AT_ONCE} frames .*{MOST_BLOCKED_AT_ONCE} calls",
    "File descriptors": f"{FILE_DESCRIPTORS:,} .*{grpc.MOST_CONNECTIONS} connections",
    "gRPC connections: clients that say nothing": f"each {grpc.KEEPALIVE_INTERVAL:.0f} s",
    "gRPC calls": f"{HELD_FREELY >> 20} MiB of .*{OTHER_CALLS:,} calls, "
    f".*at most {grpc.MOST_UNANSWERED} .*from {LONG_MESSAGE >> 10} KiB on",
    "ext_proc messages of many": f"{MESSAGE_OVERHEAD >> 20} MiB of a message",
    "Engine's metrics page: size": f"{Settings().max_metrics_bytes >> 20} MiB, {MOST_FRAMING_BYTES >> 10} KiB beside .*, "
    f"{MOST_SAMPLE_BYTES >> 10} KiB",
    "Engine's list": f"{MOST_BYTES >> 20} MiB, {MOST_SERVED_MODELS:,} names of {LONGEST_MODEL_NAME} characters",
    "Endpoints file": f"{LARGEST_FILE >> 20} MiB",
    "Kubernetes API server": f"{PAGE_SIZE} objects, answers of {MAX_ANSWER_BYTES >> 20} MiB, "
    f"lines of {MAX_EVENT_BYTES >> 20} MiB",
    "Debug port and metrics port": f"{pages.MOST_CONNECTIONS} connections .*, {pages.MOST_HEAD_BYTES >> 10} KiB of head, "
    f"{pages.HEAD_SECONDS:.0f} s for the request and {pages.SEND_SECONDS:.0f} s",
    "Debug port: bodies": f"{pages.BODY_SECONDS:.0f} s to arrive",
    "Debug port: `POST": f"{MOST_TOKEN_BYTES >> 10} KiB",
    "Live page: prompts": f"{2 * SIZE:,} beginnings",
    "Live page: viewers": f"{MOST_DECISIONS} decisions",
    "Shared state: batches": f"{LARGEST_BATCH >> 20} MiB",
    "Shared state: NATS": f"{MOST_WAITING * DECISIONS_OF_A_BATCH:,} decisions",
}
"""What the row that begins so says, as a pattern."""


@pytest.mark.parametrize("row", BOUNDS)
def test_the_bounds_are_those_of_the_code(row: str) -> None:
    (line,) = [line for line in ROWS if line.startswith(f"| {row}")]
    assert re.search(BOUNDS[row].replace("(", "\\(").replace(")", "\\)"), line), f"{BOUNDS[row]} is not in {line}"


def test_the_bounds_of_the_architecture_are_those_of_the_code() -> None:
    text = " ".join((ROOT / "docs" / "architecture.md").read_text().partition("## Bounds")[2].split("\n\n")[1].split())
    for bound in (
        f"checkpoints of one prompt ({MAX_CHECKPOINTS:,})",
        f"unconfirmed prompts of an endpoint ({MOST_OPEN:,},",
        f"adapter names ({MOST_ADAPTER_NAMES:,})",
        f"endpoints that left ({RETENTION:.0f} s)",
        f"lines ({MOST_LINES:,})",
        f"parsed ({MOST_SAMPLE_BYTES >> 10} KiB)",
        f"headers ({MOST_HEAD_BYTES >> 10} KiB)",
        f"beside the page ({MOST_FRAMING_BYTES >> 10} KiB)",
        f"chunks ({MOST_CHUNKS:,})",
        f"interim responses ({MOST_INTERIM})",
        f"scrapes in flight ({CONCURRENCY}, of which {SILENT_CONCURRENCY} ",
    ):
        assert bound in text


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{file}::{name}" for file, name in NAMED])
def test_the_tests_that_hold_it_exist(file: str, name: str) -> None:
    assert name in functions_of(file)


def test_the_headers_are_those_that_are_removed() -> None:
    (table,) = re.findall(r"## Who may send which header\n.*?\n\|---.*?\n(.*?)\n\n", TEXT, re.DOTALL)
    first_cells = [row.split("|")[1] for row in table.splitlines()]
    assert {name for cell in first_cells for name in re.findall(r"`([\w-]+)`", cell)} == set(CONTROL)


def test_the_example_removes_all_but_the_objective() -> None:
    (example,) = re.findall(r"```yaml\n(patches:.*?)```", TEXT, re.DOTALL)
    (patch,) = yaml.safe_load(yaml.safe_load(example)["patches"][0]["patch"])
    assert patch["value"] == [name for name in CONTROL if name not in OBJECTIVES]
