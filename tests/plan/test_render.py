# SPDX-License-Identifier: Apache-2.0
"""The front as a person sees it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from farskip_compile.healing.plan.choose import Exposure, Front, Point
from farskip_compile.healing.plan.render import draw_front, front_table
from tests.pictures import assert_readable, backend_kept, kept_figures

POINTS = (
    Point((), 0.0, Exposure(10.0, 8.0, 9.0)),
    Point(("moe.1",), 0.25, Exposure(10.0, 4.0, 9.0)),
    Point(("attention.2", "moe.2"), 0.5, Exposure(10.0, 2.0, 9.0)),
)
FRONT = Front(POINTS, Point(("moe.1", "attention.2", "moe.2"), 0.75, Exposure(10.0, 2.0, 9.0)))


@pytest.mark.parametrize("width", [80, 120])
def test_table(width):
    text = io.StringIO()
    measured = {("moe.1",): 0.2}
    Console(file=text, width=width).print(front_table(FRONT, POINTS[1], measured))
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert lines == [
        "   hidden  freed  damage  measured  rows",
        "    20.0%     0%   0.000         -  none",
        ">   60.0%    67%   0.250     0.200  +moe.1",
        "    80.0%   100%   0.500         -  +attention.2 +moe.2 -moe.1",
    ]


def test_picture(tmp_path):
    with kept_figures() as figures, backend_kept():
        draw_front(FRONT, tmp_path / "a.png", title="8 x h100, prefill of 4 x 256 tokens")
    assert_readable(figures[0], "8 x h100, prefill of 4 x 256 tokens", "nats per token", "%")
    draw_front(FRONT, tmp_path / "b.png", title="$T", chosen=POINTS[1], measured={(): 0.0, ("moe.1",): 0.2})
    one, other = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert one.startswith(b"\x89PNG")
    assert one != other
