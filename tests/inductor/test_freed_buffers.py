# SPDX-License-Identifier: Apache-2.0
"""What Inductor generates under our schedule uses no buffer that is freed, or has become another one."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch

from farskip_compile.models import build
from tests.inductor.test_generated_order import SMALL, get_code_of, parallel, quick_link

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
FEW = {"experts": 4, "top_k": 2, "router_groups": 1, "router_top_groups": 1}
"""Each expert has kernels of its own."""


def freed_and_used(code: str) -> list[str]:
    """Lines of a generated program that use a buffer which is freed or has become another one."""
    freed: set[str] = set()
    found = []
    body = code[code.index("def call(") :]
    for line in body[: body.index("return (")].splitlines():
        text = line.split("#")[0]
        made = re.match(r"\s*(\w+) = ", text)
        names = re.findall(r"(?<![\w.])([A-Za-z_]\w*)(?!\w|=)", text)  # neither an attribute nor a keyword
        used = set(names) - ({made.group(1)} if made else set())
        if "farskip.announce" not in line and used & freed:
            found.append(line.strip())
        freed |= {name for names in re.findall(r"\bdel ([\w, ]+)", text) for name in re.findall(r"\w+", names)}
        if made and f"del {made.group(1)}" not in text:
            freed.discard(made.group(1))
    return found


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (["buf1 = empty(); use(buf1)", "del buf1"], []),
        (
            ["buf1 = empty()", "del buf1", "extern.mm(x, out=buf1)", "use(buf1)"],
            ["extern.mm(x, out=buf1)", "use(buf1)"],
        ),
        (["buf2 = buf1; del buf1  # reuse", "use(buf2)"], []),
        (["buf2 = buf1; del buf1  # reuse", "use(reinterpret_tensor(buf1, 1))"], ["use(reinterpret_tensor(buf1, 1))"]),
        (["del buf1", "buf1 = empty()", "use(buf1)"], []),
        (["del mm, buf1", "kernels.mm(buf2, out=buf3)"], []),
    ],
)
def test_what_counts_as_used_when_freed(lines: list[str], wrong: list[str]) -> None:
    assert freed_and_used("\n".join(["def call(args):", *lines, "return (x,)"])) == wrong


@pytest.mark.parametrize(
    ("name", "bandwidth"), [("deepseek_v3", 2e7), ("llama4", 5e8), ("mixtral", 2e7), ("qwen3_moe", 5e8)]
)
def test_no_buffer_is_used_when_it_is_freed(name: str, bandwidth: float, two_ranks: Any) -> None:
    """Without drops, sizes depend on data, and the gradient of the router is scattered in place.

    A slow link makes the schedule move much, a quick one little; each model has one of them: all but the
    tensor-parallel one send and scatter alike.
    """
    layout = "tp" if name == "llama4" else "dropless"
    few = {} if layout == "tp" else FEW
    model = build(name, parallel=parallel(layout, two_ranks), **{**SMALL, "layers": ("moe",) * 3, **few})
    link = dataclasses.replace(quick_link().inter_node, bandwidth=bandwidth)
    profile = dataclasses.replace(quick_link(), intra_node=link, inter_node=link)
    options = {"profile": profile, "check_order": False}
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
    with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
        try:
            codes = get_code_of(compiled, torch.randint(0, 32, (1, 16)))
        except Exception as error:
            # until 2.12 Inductor itself may order a reader behind a write; such an order is refused, not run
            if TORCH < (2, 13) and "update to torch 2.13 or later, which can keep the order" in str(error):
                return
            raise
    assert [freed_and_used(code) for code in codes] == [[], []]
