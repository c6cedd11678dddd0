# SPDX-License-Identifier: Apache-2.0
"""Packages that only some commands need: what is refused without them, and what installs them."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farskip_compile.base.extras import EXTRAS, INSTALLED_BY, SPELLED
from tests.cli.terminals import environment, with_pipes
from tests.structure.sources import ROOT, modules

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {"torch", "numpy", "typer", "rich", "jinja2", "pydantic"}
COMES_WITH = {
    **{"sympy": "torch", "functorch": "torch", "markupsafe": "jinja2", "pydantic_core": "pydantic"},
    "tokenizers": "transformers",
    "peft": "a model that has its adapters",
    "lightning": "a Trainer of its own, to which a callback is given",
}
"""Imported where it is there already, and why."""
WITHOUT = (
    "import sys\n"
    "for name in sys.argv[1].split(','): sys.modules[name] = None\n"
    "sys.argv[:2] = ['farskip']\n"
    "from farskip_compile.cli import app\n"
    "try: app()\n"
    "finally: print('torch' in sys.modules, file=sys.stderr)\n"
)


def refused(missing: str, *args: str) -> str:
    """The one line that `farskip ARGS` says without the packages `missing`, before it has imported torch."""
    done = with_pipes([sys.executable, "-c", WITHOUT, missing, *args], env=environment())
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    line, has_torch = done.stderr.splitlines()
    assert has_torch == "False"
    return line


@pytest.mark.parametrize(
    ("missing", "args", "says"),
    [
        (
            "transformers",
            "check families",
            "farskip check families needs transformers: pip install 'farskip-compile[hf]'",
        ),
        (
            "transformers",
            "check families --list --json",
            "farskip check families needs transformers: pip install 'farskip-compile[hf]'",
        ),
        (
            "transformers",
            "simulate deepseek-v3 --device h100",
            "farskip simulate needs transformers: pip install 'farskip-compile[hf]'",
        ),
        (
            "matplotlib",
            "simulate deepseek-v3 --device h100 --png x.png --json",
            "--png needs matplotlib: pip install 'farskip-compile[plot]'",
        ),
        ("matplotlib", "explain mixtral --png x.png", "--png needs matplotlib: pip install 'farskip-compile[plot]'"),
        *(
            (
                missing,
                f"{command}",
                f"farskip heal needs {missing}: pip install 'farskip-compile[distill]'",
            )
            for command in ("heal x.toml", "heal x --data y --out z --recipe fold", "heal x --data y --out z --json")
            for missing in ("transformers", "datasets", "safetensors")
        ),
        (
            "lm_eval",
            "evaluate one other --tasks hellaswag",
            "farskip evaluate needs lm-eval: pip install 'farskip-compile[eval]'",
        ),
        ("vllm", "check serving .", "farskip check serving needs vLLM: pip install vllm"),
    ],
)
def test_a_missing_package_is_one_line(missing: str, args: str, says: str) -> None:
    assert refused(missing, *args.split()) == says


def test_of_the_ranks_of_torchrun_the_first_one_says_it() -> None:
    env = environment(RANK="1")
    done = with_pipes([sys.executable, "-c", WITHOUT, "datasets", "heal", "x.toml"], env=env)
    assert (done.returncode, done.stderr) == (2, "False\n")


def test_a_model_that_needs_one() -> None:
    done = with_pipes([sys.executable, "-c", WITHOUT, "transformers", "explain", "transformers:mixtral"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "transformers:mixtral needs transformers: pip install 'farskip-compile[hf]'\nTrue\n"


def test_a_model_of_the_user_that_needs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text("import transformers.models\n\ndef build(): ...\n")
    monkeypatch.chdir(tmp_path)
    done = with_pipes([sys.executable, "-c", WITHOUT, "transformers", "explain", "theirs:build"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "this needs transformers: pip install 'farskip-compile[hf]'\nTrue\n"


# The tables


def imported() -> Iterator[tuple[str, str]]:
    """Module of ours, and the package of others that it imports, wherever in it."""
    for name, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for package in {one.partition(".")[0] for one in names}:
                if package and package not in sys.stdlib_module_names and package != "farskip_compile":
                    yield name, package


def requirements(extra: str) -> set[str]:
    """Names of what an extra installs, and the extras that it includes."""
    found = set()
    for line in PROJECT["optional-dependencies"][extra]:
        if own := re.match(r"farskip-compile\[(.*)\]", line):
            found |= {one for name in own[1].split(",") for one in requirements(name)}
        else:
            found.add(re.split(r"[\[<>=;]", line)[0].strip())
    return found


def test_every_package_that_is_imported_has_a_way_to_be_installed() -> None:
    known = CORE | INSTALLED_BY.keys() | COMES_WITH.keys()
    assert {(name, package) for name, package in imported() if package not in known} == set()
    assert {re.split(r"[\[<>=;]", line)[0] for line in PROJECT["dependencies"]} == CORE


@pytest.mark.parametrize(("package", "by"), INSTALLED_BY.items())
def test_an_extra_installs_what_it_is_named_for(package: str, by: str) -> None:
    if own := re.fullmatch(r"farskip-compile\[(\w+)\]", by):
        assert package.replace("_", "-") in requirements(own[1])
    else:
        assert by == package


def test_what_commands_need_is_in_their_extras() -> None:
    for extra, packages in EXTRAS.items():
        assert {one.replace("_", "-") for one in packages} <= requirements(extra)
        assert set(packages) <= INSTALLED_BY.keys()
    assert SPELLED.keys() <= INSTALLED_BY.keys()
