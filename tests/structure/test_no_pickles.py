# SPDX-License-Identifier: Apache-2.0
"""Nothing that is read from a disk can run code: no pickle, and `torch.load` of tensors only."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.structure.sources import ROOT

PIPES = {("benchmarks/harness/launch.py", one) for one in ("pickle.load(sys.stdin.buffer)", "pickle.loads(arguments)")}
"""Where a process is sent a call by the one that started it, through a pipe that nobody else has."""
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
READERS = {"load", "loads", "Unpickler", "open"}


def unsafe_calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE:
            yield ast.unparse(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value).split(".")[-1].lstrip("_"), node.func.attr
            only_weights = any(one.arg == "weights_only" and ast.unparse(one.value) == "True" for one in node.keywords)
            if (owner in UNSAFE and name in READERS) or (owner == "torch" and name == "load" and not only_weights):
                yield ast.unparse(node)


def test_no_pickle_is_read_from_a_file() -> None:
    found = {
        (str(file.relative_to(ROOT)), call)
        for folder in ("farskip_compile", "passes", "models", "benchmarks")
        for file in (ROOT / folder).rglob("*.py")
        for call in unsafe_calls(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert found == PIPES


def test_what_counts_as_one() -> None:
    for text in ["pickle.loads(x)", "torch.load(f)", "torch.load(f, weights_only=False)", "from pickle import loads"]:
        assert [*unsafe_calls(ast.parse(text))] == [text]
    for text in ["torch.load(f, weights_only=True)", "pickle.dumps(x)", "json.load(f)", "import pickle"]:
        assert not [*unsafe_calls(ast.parse(text))]
