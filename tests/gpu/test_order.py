# SPDX-License-Identifier: Apache-2.0
"""The check of the order in which a program calls its kernels: it is silent on that order, and on no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gpu.order import Decided, differences

LINES = {
    "": "triton_poi_fused_{0}.run(buf{0}, 8, stream=raw_stream0)",
    "L": "buf{0} = torch.ops._c10d_functional.all_to_all_single.default(arg0_1, [4, 4], [4, 4], '0')",
    "W": "torch.ops._c10d_functional.wait_tensor.default(buf{0})",
}
kinds = st.lists(st.sampled_from(sorted(LINES)), min_size=2, max_size=8)


def program(*lines: str) -> str:
    return "\n    ".join(
        ["def call(self, args):", "buf0 = empty_strided_cuda((8, ), (1, ))", *lines, "return (buf0, )"]
    )


def kernel(kind: str, *numbers: int) -> Decided:
    return Decided(f"op{numbers[0]}", kind, frozenset(f"buf{number}" for number in numbers))


@given(kinds, st.data())
def test_any_other_order_is_seen(kinds: list[str], data: st.DataObject) -> None:
    decided = [kernel(kind, number) for number, kind in enumerate(kinds)]
    lines = [LINES[kind].format(number) for number, kind in enumerate(kinds)]
    assert differences(program(*lines), decided) == []
    order = data.draw(st.permutations(range(len(kinds))))
    other = differences(program(*(lines[number] for number in order)), decided)
    assert bool(other) == (order != list(range(len(kinds))))


@given(kinds, st.data())
def test_a_call_more_or_less_is_seen(kinds: list[str], data: st.DataObject) -> None:
    decided = [kernel(kind, number) for number, kind in enumerate(kinds)]
    lines = [LINES[kind].format(number) for number, kind in enumerate(kinds)]
    place = data.draw(st.integers(0, len(kinds) - 1))
    assert differences(program(*lines[:place], *lines[place + 1 :]), decided)
    assert differences(program(*lines[:place], LINES[""].format(99), *lines[place:]), decided)


def test_a_combined_kernel_may_be_two_calls_in_a_row() -> None:
    both, after = kernel("", 1, 2), kernel("L", 3)
    one, two, launch = LINES[""].format(1), LINES[""].format(2), LINES["L"].format(3)
    assert differences(program(one, two, launch), [both, after]) == []
    assert differences(program(one, launch, two), [both, after])


@pytest.mark.parametrize(("kind", "other"), [("L", "W"), ("W", ""), ("", "L")])
def test_another_kind_of_call_on_the_same_buffer_is_seen(kind: str, other: str) -> None:
    assert differences(program(LINES[kind].format(1)), [kernel(kind, 1)]) == []
    assert differences(program(LINES[other].format(1)), [kernel(kind, 1)])
