# SPDX-License-Identifier: Apache-2.0
"""Kernels that are built as one file are the kernels that are built alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._inductor.utils import fresh_cache

from tests.economy import share_headers
from tests.one_build import kernels_in_one_build, together


def two_kernels(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = (x.exp().sum(-1, keepdim=True) + x) @ weight
    return y.softmax(-1), (y > 0).sum(0)


def found(building: Callable[[], AbstractContextManager[None]], folder: Path) -> tuple[list[torch.Tensor], int]:
    """Results, and how many libraries were built."""
    torch.compiler.reset()
    folder.mkdir()
    share_headers(folder)
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6)
    quick = torch._inductor.config.patch("cpp.simdlen", 1)
    with fresh_cache(dir=str(folder), delete=False), quick, building(), torch.no_grad():
        results = torch.compile(two_kernels, fullgraph=True)(x, torch.ones(6, 6, dtype=torch.float64))
    return list(results), len(list(folder.rglob("*.main.so")))


def test_one_library_and_the_same_bits(tmp_path: Path) -> None:
    (alone, several), (joined, one) = found(nullcontext, tmp_path / "a"), found(kernels_in_one_build, tmp_path / "b")
    assert several > 1
    assert one == 1
    assert all(map(torch.equal, alone, joined))


def test_each_text_keeps_its_own_names() -> None:
    text = '#include <cmath>\nextern "C" void kernel(int* x) {}\nPyObject* PyInit_kernel() { return 0; }'
    assert together([text]) == text
    file = together([text, text.replace("int*", "float*")])
    assert file.count("#include <cmath>") == 1
    assert file.index("#include <cmath>") < file.index("namespace")
    assert file.index("kernel(int*") < file.index("#define kernel kernel_1") < file.index("kernel(float*")


def test_a_text_that_can_not_be_built_is_named_and_forgotten() -> None:
    with torch._inductor.config.patch("cpp.simdlen", 1), kernels_in_one_build():
        wrong = CppPythonBindingsCodeCache.load_async("this is no C++;")
        with pytest.raises(Exception, match="this is no C"):
            wrong()
        right = torch.compile(torch.sin, fullgraph=True)
        torch.testing.assert_close(right(torch.ones(3)), torch.ones(3).sin())
