# SPDX-License-Identifier: Apache-2.0
"""The package itself: nothing is loaded before it is used, and public names stay what they are."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest import mock

import pytest

import farskip_compile
from farskip_compile.cli.options import BUILT_IN
from farskip_compile.tools.zoo.model_source import built_in_names

COMMANDS = (
    *("explain", "demo", "status", "simulate", "calibrate", "overlap", "heal"),
    *("evaluate", "check", "check families", "check serving"),
)


def run(script: str) -> str:
    """The output of a new process, which has no module of the suite's."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_folder_is_in_the_wheel():
    """An editable install finds a folder that `pyproject.toml` forgets; the wheel does not hold it."""
    root = Path(__file__).parent.parent
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    files = [path for top in ("farskip_compile", "passes", "models") for path in (root / top).rglob("*")]
    folders = {path.parent.relative_to(root).parts for path in files if path.is_file() and path.suffix != ".pyc"}
    installed = {folder if folder[0] == "farskip_compile" else ("farskip_compile", *folder) for folder in folders}
    assert sorted(map(".".join, installed)) == sorted(listed)


def test_the_import_loads_nothing():
    found = run(
        "import sys, farskip_compile; print(*[name for name in sys.modules if name[:5] in ('farsk', 'torch', 'pydan')])"
    )
    assert found.split() == ["farskip_compile"]


@pytest.mark.parametrize("args", [(), *(tuple(command.split()) for command in COMMANDS)], ids="-".join)
def test_help_needs_neither_torch_nor_the_package(args):
    found = run(
        "import sys\n"
        f"sys.argv = ['farskip', *{args!r}, '--help']\n"
        "from farskip_compile.cli import app\n"
        "try: app()\n"
        "except SystemExit as end: assert not end.code\n"
        "offered = ('farskip_compile', 'farskip_compile.base', 'farskip_compile.base.choices')\n"
        "own = [name for name in sys.modules if name.startswith('farskip_compile')]\n"
        "print('loaded', 'torch' in sys.modules, [name for name in own if '.cli' not in name and name not in offered])"
    )
    assert "Usage:" in found
    assert ("[data]" in found) == ("heal" in args), "brackets in help are not markup"
    assert found.splitlines()[-1] == "loaded False []"


def test_help_names_the_built_in_models():
    assert list(BUILT_IN) == built_in_names()


def test_public_names_are_complete():
    tree = ast.parse(Path(farskip_compile.__file__).read_text())
    types_only = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        name.name: node.module
        for node in ast.walk(types_only)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    homes = {name: f"farskip_compile.{module}" for name, module in farskip_compile._HOME.items()}
    assert typed == homes
    assert sorted(homes) == sorted(farskip_compile.__all__)
    assert set(farskip_compile.__all__) <= set(dir(farskip_compile))
    names: dict[str, object] = {}
    exec("from farskip_compile import *", names)
    assert names.keys() >= set(farskip_compile.__all__)
    for name in farskip_compile.__all__:
        found = getattr(farskip_compile, name)
        assert found is names[name] is getattr(sys.modules[homes[name]], name)
        assert pickle.loads(pickle.dumps(found)) is found
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        farskip_compile.explian


def test_no_public_name_is_the_name_of_a_room():
    rooms = {path.stem for path in Path(farskip_compile.__file__).parent.iterdir()} | {"passes", "models"}
    assert rooms.isdisjoint(farskip_compile.__all__)


@pytest.mark.parametrize("target", ["text_utils.printable", "explain", "errors.Where", "save_manifest"])
def test_names_can_be_patched_and_come_back(target):
    def now():
        found = farskip_compile
        for part in target.split("."):
            found = getattr(found, part)
        return found

    before = now()
    with mock.patch(f"farskip_compile.{target}") as patched:
        assert now() is patched
    assert now() is before


def test_submodules_are_attributes_without_an_import():
    found = run("import farskip_compile; print(farskip_compile.cli.__name__, farskip_compile.text_utils.__name__)")
    assert found.split() == ["farskip_compile.cli", "farskip_compile.text_utils"]
