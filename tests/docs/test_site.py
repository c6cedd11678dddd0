# SPDX-License-Identifier: Apache-2.0
"""The documentation is whole: every page is reachable, every link leads somewhere, every public name is explained.

Read, not built: `make docs` builds the site. Nothing here needs torch.
"""

from __future__ import annotations

import ast
import itertools
import re
import runpy
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.sources import DOCS, PAGES, anchors, definition, directives, links, node_of, public_names, site, tokens
from tests.structure.sources import ROOT

REFERENCE = sorted((DOCS / "reference").glob("*.md"))
HOOKS = ast.parse((DOCS / "_site" / "hooks.py").read_text())


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def leaves(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [leaf for part in parts for leaf in leaves(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    (from_root,) = [
        ast.literal_eval(node.value)
        for node in HOOKS.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FROM_ROOT"
    ]
    assert [name for name in from_root if not (ROOT / name).is_file()] == []
    listed = leaves(site()["nav"])
    assert sorted(listed) == sorted(
        [*from_root.values(), *(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))]
    )


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    repository = re.escape(site()["repo_url"])
    broken = []
    for link in links(page):
        parts = urlsplit(link)
        ours = re.fullmatch(rf"{repository}/(?:blob|tree|raw)/main/([^#]*)", link.partition("#")[0])
        if (parts.scheme or parts.netloc) and ours is None:
            continue
        path = ROOT / ours[1] if ours else page.parent / unquote(parts.path) if parts.path else page
        path = path.resolve()
        known = anchors(path) if path.suffix == ".md" and path.is_file() and parts.fragment else [parts.fragment]
        known = [one for one in known if known.count(one) == 1]  # GitHub and the site number what is there twice apart
        if not path.exists() or parts.fragment not in known or not path.is_relative_to(ROOT):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_lists_are_the_same_on_github_and_on_the_site(page: Path) -> None:
    """Python-Markdown wants a blank line before a list and four spaces before a nested one; CommonMark does not."""
    lines, depth, wrong = page.read_text().splitlines(), 0, []
    for token in tokens(page):
        if token.type in ("bullet_list_open", "ordered_list_open"):
            first = token.map[0]
            before = lines[first - 1] if first else ""
            indent = len(lines[first]) - len(lines[first].lstrip())
            if indent < 4 * depth or (not depth and before.strip() and not before.startswith("#")):
                wrong.append(f"line {first + 1}: {lines[first]}")
            depth += 1
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            depth -= 1
    assert wrong == []


def test_every_public_name_is_on_one_reference_page() -> None:
    documented = [definition(path) for page in REFERENCE for path in directives(page)]
    assert [one for one in documented if documented.count(one) > 1] == []
    public = public_names()
    assert {path for name, path in public.items() if name not in documented} == set()
    imported = {definition(path) for path in paths_in_programs()}
    assert {".".join(one) for one in documented if one not in public and one not in imported} == set()


def paths_in_programs() -> set[str]:
    """`module.name` for all that the programs of the pages import from the package; ARCHITECTURE shows its inside."""
    found = set()
    for page in PAGES:
        for token in tokens(page):
            if token.type != "fence" or not token.info.startswith("python") or page.name == "ARCHITECTURE.md":
                continue
            for node in ast.walk(ast.parse(token.content)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("farskip_compile"):
                    found |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name != "strategies"}
    return found


def test_what_programs_import_is_on_a_reference_page() -> None:
    documented = {definition(path) for page in REFERENCE for path in directives(page)}
    assert {path for path in paths_in_programs() if definition(path) not in documented} == set()


def documented_nodes() -> dict[str, ast.stmt]:
    names = [definition(path) for page in REFERENCE for path in directives(page)]
    return {".".join(name): node_of(name) for name in names}


def functions_of(node: ast.stmt) -> list[ast.FunctionDef]:
    """A function, or the public methods of a class."""
    if isinstance(node, ast.FunctionDef):
        return [node]
    methods = node.body if isinstance(node, ast.ClassDef) else []
    return [part for part in methods if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")]


def test_docstrings_name_every_argument() -> None:
    missing = []
    for name, node in documented_nodes().items():
        for function in functions_of(node):
            text, given = ast.get_docstring(function) or "", function.args
            several = [one for one in (given.vararg, given.kwarg) if one is not None]
            names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, *several)]
            missing += [
                f"{name}, {function.name}: {one}"
                for one in names
                if one not in ("self", "cls", "draw") and not re.search(rf"\b{one}\b", text)
            ]
    assert missing == []


def test_every_field_is_explained() -> None:
    missing = []
    for name, node in documented_nodes().items():
        body = node.body if isinstance(node, ast.ClassDef) else []
        for part, following in itertools.pairwise([*body, None]):
            if isinstance(part, ast.AnnAssign):
                field = ast.unparse(part.target)
                explained = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                missing += [] if field.startswith("_") or explained else [f"{name}.{field}"]
    assert missing == []


def test_the_command_line_is_what_its_page_says() -> None:
    made = runpy.run_path(str(DOCS / "_site" / "cli_page.py"))["cli_page"]()
    assert made == (DOCS / "reference" / "cli.md").read_text(), "python docs/_site/cli_page.py"
