# SPDX-License-Identifier: Apache-2.0
"""The public strategies: importable without tests of ours, with a clear error where hypothesis is missing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import farskip_compile.testing
from farskip_compile.models.decoder import Decoder
from farskip_compile.passes.schedule.program import check_order
from farskip_compile.testing import strategies
from farskip_compile.testing.strategies import capture, cases, evaluate, networks, parallel_cases, programs
from farskip_compile.testing.strategies.architectures import GeneratedCase
from farskip_compile.testing.strategies.network import GeneratedNetwork

FOLDER = Path(farskip_compile.testing.__file__).parent


def test_without_hypothesis_the_error_names_the_extra():
    """And the assertions need nothing: they are imported first."""
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'hypothesis' else find(name, *a)\n"
        "import farskip_compile.testing as t; print(t.assert_rewired.__name__)\n"
        "import farskip_compile.testing.strategies"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert run.stdout.strip() == "assert_rewired"
    assert run.stderr.splitlines()[-1] == (
        "ImportError: farskip_compile.testing.strategies needs hypothesis: pip install 'farskip-compile[testing]'"
    )


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.name)
def test_what_is_shipped_imports_neither_pytest_nor_tests(path: Path):
    tree = ast.parse(path.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in imported}
    assert not roots & {"pytest", "unittest", "tests"}
    assert "hypothesis" not in roots or path.parent.name == "strategies"


def test_everything_public_is_documented():
    for name in strategies.__all__:
        assert getattr(strategies, name).__doc__


@settings(max_examples=10)
@given(case=cases(max_layers=2))
def test_a_case_has_a_model_and_an_oracle(case: GeneratedCase):
    model = case.model(torch.float32)
    assert isinstance(model, Decoder)
    with torch.no_grad():
        assert case.oracle(model)(case.ids()).shape == (case.batch, case.sequence, 17)
    assert case.options(inner="eager")["connectivity"] == case.connectivity


@settings(max_examples=10)
@given(case=parallel_cases("tp+sp"))
def test_parallel_cases_divide(case: GeneratedCase):
    assert case.sequence % 2 == 0
    assert case.config.heads % 2 == case.config.kv_heads % 2 == 0


@settings(max_examples=20)
@given(network=networks(), data=st.data())
def test_a_network_is_its_graph(network: GeneratedNetwork, data: st.DataObject):
    outputs = capture(network).run(network)
    for one, other in zip(outputs, evaluate(network), strict=True):
        assert torch.equal(one, other)


@settings(max_examples=20)
@given(program=programs())
def test_programs_are_in_order(program):
    check_order(program, range(len(program.tasks)))
