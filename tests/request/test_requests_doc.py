"""docs/requests.md says what is read."""

from __future__ import annotations

import re
from pathlib import Path

from tests.request.test_routes import BODIES
from warmroute.request.content_encoding import MAX_RATIO, SMALL
from warmroute.request.prompt import MAX_ARGUMENTS, MAX_ITEMS, MEDIA_BYTES, NOT_RENDERED
from warmroute.request.routes import ROUTES
from warmroute.request.seed import SEED_FIELDS
from warmroute.routing.router import MOST_MATCHED_PROMPTS
from warmroute.routing.state_keepers import MOST_STATES

TEXT = (Path(__file__).parents[2] / "docs" / "requests.md").read_text(encoding="utf-8")


def names(text: str) -> set[str]:
    return set(re.findall(r"`([\w/]+)`", text))


def listed(mark: str) -> set[str]:
    (text,) = re.findall(rf"<!-- {mark} -->\n(.*?)<!-- end -->", TEXT, re.DOTALL)
    return names(text)


def test_the_table_has_every_path_with_its_fields() -> None:
    rows = dict(re.findall(r"^\| `(/[\w/]+)` \|[^|]*\|([^|]*)\|$", TEXT, re.MULTILINE))
    assert list(rows) == list(ROUTES)
    for path, route in ROUTES.items():
        read = {name for name, _ in route.form(BODIES[path]).fields}
        documented = names(rows[path])
        if not read:
            assert documented == set(), path
        elif path in ("/embeddings", "/rerank", "/score", "/embed"):
            assert documented & read, path
        else:
            assert read <= documented, path


def test_the_lists_of_fields_are_those_of_the_code() -> None:
    assert listed("seed fields") == SEED_FIELDS
    assert listed("not rendered") == NOT_RENDERED


def test_the_bounds_are_those_of_the_code() -> None:
    assert f"up to {MAX_RATIO} times the body's length plus {SMALL >> 10} KiB" in TEXT
    assert f"({MOST_MATCHED_PROMPTS} of one request" in TEXT
    assert f"last {MOST_STATES:,}" in TEXT
    assert f"{MEDIA_BYTES:,} bytes" in TEXT
    assert f"{MAX_ARGUMENTS >> 10} KiB" in TEXT
    assert f"{MAX_ITEMS:,} messages" in TEXT
