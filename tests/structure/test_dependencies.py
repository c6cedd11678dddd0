# SPDX-License-Identifier: Apache-2.0
"""Each package that is imported is one that pyproject.toml asks for, and where that is an extra, it says so."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache

import pytest

from tests.structure.project import EXTRAS, PROJECT, REQUIRED
from tests.structure.sources import ROOT, modules

SPELLED = {"lm_eval": "lm-eval"}
"""By the name of the import, the package on PyPI."""
COMES_WITH = {
    "functorch": "torch",
    "sympy": "torch",
    "markupsafe": "jinja2",
    "pydantic_core": "pydantic",
    "tokenizers": "transformers",
    "triton": "torch",  # where there is a GPU; the tests get it by `make test-all`
}
"""What belongs to another package, which has a say in its version."""
BROUGHT_BY_THE_USER = {
    "vllm": "docs/serving.md",  # its wheel is chosen by machine: `pip install vllm farskip-compile`
    "peft": "docs/handwritten.md",  # imported only once a model with adapters has done so
    "lightning": "docs/integrations/lightning.md",  # who uses the callback has it
}
"""What no extra installs, and the page that says it."""
OURS = {"farskip_compile", "tests", "benchmarks"}


def imported(tree: ast.AST) -> Iterator[str]:
    """The packages that a module imports, at the top or lazily, or by name."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "find_spec"):
            names = [one.value for one in node.args[:1] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        yield from (name.partition(".")[0] for name in names)


def foreign(files: dict[str, str]) -> dict[str, str]:
    """Packages of others, each with a file that imports it."""
    found = {name: file for file, text in files.items() for name in imported(ast.parse(text))}
    return {name: file for name, file in found.items() if name not in sys.stdlib_module_names and name not in OURS}


def asked_for(*extras: str) -> set[str]:
    names = {one.name for one in REQUIRED}
    for extra in extras:
        for one in EXTRAS[extra]:
            names |= asked_for(*one.extras) if one.name == PROJECT["name"] else {one.name}
    return names


def unasked(packages: dict[str, str], allowed: set[str]) -> dict[str, str]:
    return {
        name: file
        for name, file in packages.items()
        if SPELLED.get(name, name) not in allowed and COMES_WITH.get(name) not in allowed
    }


@cache
def package() -> dict[str, str]:
    """The files of the package with their text. Read for the first test that asks: all workers collect this file."""
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in modules().values()}


def test_the_package_imports_what_its_extras_bring() -> None:
    public = asked_for(*(name for name in EXTRAS if name != "dev"))
    assert set(unasked(foreign(package()), public)) == set(BROUGHT_BY_THE_USER)


@pytest.mark.parametrize(("name", "page"), BROUGHT_BY_THE_USER.items())
def test_who_brings_a_package_is_told_so(name: str, page: str) -> None:
    assert re.search(name, (ROOT / page).read_text(encoding="utf-8"), re.IGNORECASE)


def test_each_package_that_is_always_installed_is_imported() -> None:
    assert asked_for() - {SPELLED.get(name, name) for name in foreign(package())} == set()


def test_without_extras_nothing_else_is_imported_at_once() -> None:
    """Modules that need an extra import it inside functions, or are themselves what the extra is for."""
    whole = ("healing/evaluation/", "integrations/", "testing/strategies/", "vllm/")
    for place, text in package().items():
        tree = ast.parse(text)
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        extra = unasked(foreign({place: ast.unparse(top)}), asked_for())
        assert not extra or place.startswith(tuple(f"farskip_compile/{folder}" for folder in whole)), extra


def test_the_benchmarks_import_what_the_development_environment_has() -> None:
    files = sorted((ROOT / "benchmarks").rglob("*.py"))
    local = {file.stem for file in files} | {file.parent.name for file in files}
    found = foreign({str(file): file.read_text(encoding="utf-8") for file in files})
    assert unasked({name: file for name, file in found.items() if name not in local}, asked_for("dev")) == {}


def test_what_counts_as_an_import() -> None:
    text = "import a.b\ndef f():\n    from c import d\n    importlib.import_module('e.f')\n    from . import g\n"
    assert [*imported(ast.parse(text))] == ["a", "c", "e"]
    assert unasked({"tokenizers": "x.py", "lm_eval": "y.py", "other": "z.py"}, {"transformers", "lm-eval"}) == {
        "other": "z.py"
    }
