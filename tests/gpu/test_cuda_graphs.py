# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs in programs for a GPU: no collective is in flight where one begins or ends, and part by part they compute
what eager does."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.gpu.test_programs import FLOAT32, REASON, process

pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def programs(mode: str, **spec: Any) -> list[dict[str, Any]]:
    found = process("tests.gpu.captured", json.dumps({"mode": mode, "inductor": {}, **spec}))
    assert {name: off for name, off in found["off"].items() if not off < FLOAT32} == {}
    assert len(found["off"]) > 20
    parts: list[dict[str, Any]] = found["programs"]
    return parts


def test_exchanges_of_sizes_that_are_known_are_captured_with_their_waits() -> None:
    for program in programs("padded"):
        (order,) = program["graphs"].values()
        assert re.fullmatch("(LW)+", order)
        assert program["around"] == "0"


def test_exchanges_without_drops_are_left_out_where_the_host_reads_their_sizes() -> None:
    forward, backward = programs("dropless")
    assert len(forward["graphs"]) > 4
    assert set(forward["graphs"].values()) == {""}
    assert re.fullmatch("(LW)+", re.sub(r"\d", "", forward["around"]))
    assert (forward["copies"], forward["reads"]) == (2, 32), "all counts of a layer come in one copy"
    assert (backward["copies"], backward["reads"]) == (0, 0)
    (order,) = backward["graphs"].values()
    assert re.fullmatch("(LW)+", order)
