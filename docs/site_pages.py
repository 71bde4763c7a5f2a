"""Hooks of mkdocs: files of the repository's root as pages, and links that lead out of docs/ as links to the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
}
"""Documents of the root that are pages of the site."""
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the documents of the root, with their links as seen from docs/."""
    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = text.replace("<details>", '<details markdown="1">')  # GitHub renders Markdown in it as it is
        content = LINK.sub(lambda link: link[1] + _from_docs(link[2]) + link[3], text)
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Lead links out of docs/ to the site's page of that document, or to the repository."""
    return LINK.sub(lambda link: link[1] + _on_the_site(link[2], config.repo_url) + link[3], markdown)


def _from_docs(target: str) -> str:
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"


def _on_the_site(target: str, repository: str) -> str:
    if not target.startswith("../"):
        return target
    path = target.removeprefix("../")
    if path in PAGES:
        return PAGES[path]
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{repository}/{kind}/main/{path}"
