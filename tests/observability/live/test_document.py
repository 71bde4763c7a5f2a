"""The live page's document: one file that loads nothing, at any address."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

from warmroute.observability.live.document import SCRIPTS, document

HTML = document().body.decode()
POLICY = document().headers["Content-Security-Policy"]


def test_nothing_is_loaded_from_elsewhere() -> None:
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY
    assert set(re.findall(r"https?://[^\s\"')]+", HTML)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|img|iframe|object|embed|form)\b|@import|url\(", HTML)


def test_the_policy_allows_its_own_style_and_script_only() -> None:
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        found = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", HTML, flags=re.DOTALL)
        assert len(found) == 1, tag
        digest = b64encode(sha256(found[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in POLICY


def test_addresses_are_relative_so_that_it_works_behind_a_proxy() -> None:
    assert not re.search(r"(?:href|src|action)=\"/|(?:fetch|read)\([`\"']/", HTML)


def test_what_others_choose_gets_into_the_page_as_text() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", HTML)


def test_every_source_is_in_it() -> None:
    assert len(SCRIPTS) == len(set(SCRIPTS))
    assert "{{" not in HTML
    for name in ("makeBanner", "makeEngines", "makePrefixes", "makeDecisions", "makeDryRun", "makeTheme"):
        assert HTML.count(f"function {name}(") == 1


def test_it_is_small() -> None:
    assert len(HTML) < 64_000
