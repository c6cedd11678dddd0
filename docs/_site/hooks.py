# SPDX-License-Identifier: Apache-2.0
"""What MkDocs does not do by itself for this repository.

Comes in: the configuration of mkdocs.yml, and each page. Goes out: the same, with

- the sources as they are installed, `passes/` and `models/` inside `farskip_compile`, for mkdocstrings to read;
- files of the repository's root that are pages of the site (`FROM_ROOT`);
- links that work on GitHub and lead out of `docs/`: to such a page, or to the file in the repository;
- links that are called as the page's file is, by the page's title instead.

A link to a file that does not exist stays as it is, so that MkDocs reports it. Never writes into the repository.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = "docs"
FROM_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""File of the root: its page."""
INSIDE = ("passes", "models")
"""Folders of the root that are installed inside the package."""


class _Links(Treeprocessor):
    """Comes before MkDocs' own, which then checks what is left."""

    repository = ""
    titles: ClassVar[dict[str, str]] = {}
    """Page: what the navigation calls it."""
    page: Path
    """The page that is rendered, in the repository."""
    at: Path
    """Where the site has it, in `docs/`."""

    def run(self, root: Element) -> None:
        for element in root.iter("a"):
            link = self.replaced(element.get("href", ""))
            element.set("href", link)
            page = os.path.normpath(self.at.parent / urlsplit(link).path)
            if (element.text or "").removeprefix(f"{DOCS}/") == page.rpartition("/")[2]:
                element.text = self.titles.get(page, element.text)

    def replaced(self, link: str) -> str:
        """The link that leads to the same file from the page's place in the site."""
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
            return link
        target = Path(os.path.normpath(self.page.parent / parts.path))
        end = f"#{parts.fragment}" if parts.fragment else ""
        if target.as_posix() in FROM_ROOT:
            inside = Path(FROM_ROOT[target.as_posix()])
        elif target.parts[0] == DOCS:
            inside = target.relative_to(DOCS)
        elif target.parts[0] != ".." and (ROOT / target).exists():
            kind = "tree" if (ROOT / target).is_dir() else "blob"
            return f"{self.repository}/{kind}/main/{target.as_posix()}{end}"
        else:
            return link
        return Path(os.path.relpath(inside, self.at.parent)).as_posix() + end


class _LinksExtension(Extension):
    def __init__(self, links: _Links) -> None:
        super().__init__()
        self.links = links

    def extendMarkdown(self, md: Markdown) -> None:
        md.treeprocessors.register(self.links, "links_out_of_docs", 5)


_links = _Links()
_sources: list[str] = []


def _titles(nav: Any, title: str = "") -> dict[str, str]:
    if isinstance(nav, str):
        return {nav: title} if title else {}
    parts = nav.items() if isinstance(nav, dict) else [("", part) for part in nav]
    return {page: text for name, part in parts for page, text in _titles(part, name).items()}


@event_priority(100)  # before mkdocstrings reads where the sources are
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Copy the sources to where they are installed, and put the links' replacement among the extensions of Markdown."""
    _links.repository = (config.repo_url or "").rstrip("/")
    _links.titles.update(_titles(config.nav))
    config.markdown_extensions.append(_LinksExtension(_links))  # type: ignore[arg-type]
    tree = tempfile.mkdtemp(prefix="farskip-docs-")
    _sources.append(tree)
    package = Path(tree) / "farskip_compile"
    for name, place in {"farskip_compile": package, **{name: package / name for name in INSIDE}}.items():
        shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [tree]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose text stands in the root."""
    for name, page in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> None:
    """Remember which page is about to be rendered."""
    at = page.file.src_uri
    _links.at = Path(at)
    _links.page = next((Path(name) for name, made in FROM_ROOT.items() if made == at), Path(DOCS) / at)


def on_shutdown(**_: object) -> None:
    """Remove the copies."""
    for tree in _sources:
        shutil.rmtree(tree)
