"""The live page as one HTML document, joined from its sources, with a policy that lets it load nothing else."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

from warmroute.observability.page_server import Page, Request

SCRIPTS = (
    *("dom.js", "format.js", "connection.js", "banner.js", "engines.js", "prefixes.js"),
    *("costs.js", "decisions.js", "dry_run.js", "theme.js", "main.js"),
)
"""The script's parts in their order; they share one module scope."""


@cache
def document() -> Page:
    """The page. It has no external resource; its headers allow its own style, its own script and requests to its origin."""
    style = _source("page.css").replace("{{dark}}", _source("dark.css"))
    script = "\n".join(map(_source, SCRIPTS))
    html = _source("page.html").replace("{{style}}", style).replace("{{script}}", script)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Page(html.encode(), "text/html; charset=utf-8", headers=headers)


async def page(_: Request) -> Page:
    """The route of the page."""
    return document()


def _source(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The hash by which the policy names an inline style or script (https://www.w3.org/TR/CSP3/#hash-source)."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
