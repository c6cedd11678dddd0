# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of docs/concepts.md: `python docs/pictures/draw.py`.

In:    nothing; the rules of the named connectivities are written down here once more (docs/connectivities.md).
Out:   `connectivities.svg` and `timeline.svg` in this folder. The same bytes on every machine.
Never: imports anything of the package, so that a test can hold the pictures against it.

Each picture stands on a light card of its own, so it is readable in light and in dark pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent
INK, FAINT, CARD, BORDER = "#1f2328", "#8c959f", "#ffffff", "#d0d7de"
READ, LEFT_OUT, COMPUTE, WIRE, IDLE = "#2f6fb3", "#c4650b", "#cfe2f5", "#f7d9b9", "#f3f4f6"
FONT = "font-family='system-ui, Segoe UI, Helvetica, Arial, sans-serif'"

TERMS = ("e", "a0", "m0", "a1", "s1", "r1", "a2")
"""The stream of a model whose first layer is dense, up to the attention of its third layer."""
ROWS: dict[str, int] = {"attention.1": 3, "moe.1": 4, "attention.2": 6, "moe.2": 7}
"""Sub-blocks of two layers, and how many terms stand in the stream before them as written."""
RULES: dict[str, dict[str, tuple[str, ...]]] = {
    "none": {},
    "attention": {"attention.2": ("r1",)},
    "mlp": {"moe.1": ("a1",), "moe.2": ("a2",)},
    "full": {"moe.1": ("a1",), "attention.2": ("r1",), "moe.2": ("a2",)},
    "lag2": {"moe.1": ("a1",), "attention.2": ("r1",), "moe.2": ("a2", "r1")},
    "ladder": {"attention.1": ("m0",), "moe.1": ("a1",), "attention.2": ("s1", "r1"), "moe.2": ("a2",)},
}
"""What each sub-block leaves out."""
FREED = {
    "none": "the model as written",
    "attention": "combine beside attention",
    "mlp": "dispatch beside attention",
    "full": "both",
    "lag2": "two layers at once",
    "ladder": "each beside the next",
}


@dataclass(frozen=True)
class Block:
    """A stretch of work on one lane of a timeline, in units of time."""

    lane: int
    start: float
    length: float
    label: str


def text(x: float, y: float, words: str, *, size: int = 12, colour: str = INK, anchor: str = "start") -> str:
    """A line of text; `y` is its base line."""
    return f"<text x='{x:g}' y='{y:g}' font-size='{size}' fill='{colour}' text-anchor='{anchor}'>{escape(words)}</text>"


def box(x: float, y: float, width: float, height: float, fill: str, *, radius: float = 3, stroke: str = "none") -> str:
    """A rectangle."""
    return (
        f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='{radius:g}' fill='{fill}' "
        f"stroke='{stroke}'/>"
    )


def picture(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A whole SVG on its card; `title` is what a screen reader says."""
    card = box(0.5, 0.5, width - 1, height - 1, CARD, radius=8, stroke=BORDER)
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' {FONT} role='img'>"
    return "\n".join([head, f"<title>{escape(title)}</title>", card, *parts, "</svg>", ""])


def connectivities() -> str:
    """Which terms four sub-blocks read, under each named connectivity."""
    parts = []
    for number, name in enumerate(RULES):
        left, top = 16 + 232 * (number % 3), 12 + 158 * (number // 3)
        parts += [text(left, top + 14, name, size=14), text(left + 74, top + 14, FREED[name], size=11, colour=FAINT)]
        for column, term in enumerate(TERMS):
            parts.append(text(left + 84 + 20 * column, top + 36, term, size=11, colour=FAINT, anchor="middle"))
        for line, (row, before) in enumerate(ROWS.items()):
            y = top + 56 + 22 * line
            parts.append(text(left, y, row, size=12))
            for column, term in enumerate(TERMS[:before]):
                parts.append(_cell(left + 84 + 20 * column, y - 4, term in RULES[name].get(row, ())))
    parts += [_cell(20, 340, False), text(32, 344, "read", size=11), _cell(80, 340, True)]
    parts.append(text(92, 344, "left out: nothing waits for it here; it reaches the stream later", size=11))
    return picture(712, 358, "The connectivity table under six connectivities", parts)


def _cell(x: float, y: float, left_out: bool) -> str:
    fill, stroke = ("none", LEFT_OUT) if left_out else (READ, READ)
    return f"<circle cx='{x:g}' cy='{y:g}' r='5.5' fill='{fill}' stroke='{stroke}' stroke-width='2'/>"


COMPUTE_LANE, WIRE_LANE = 0, 1
ATTENTION, SHARED, EXPERTS, EXCHANGE = 3.6, 1.4, 4.0, 2.5
"""Lengths in which everything can be hidden under `full`: an attention and shared experts last as long as two
exchanges."""


def as_written() -> list[Block]:
    """Standard wiring, each launch next to its wait."""
    blocks, now = [], 0.0
    for label, lane, length in (
        ("attention 2", COMPUTE_LANE, ATTENTION),
        ("shared", COMPUTE_LANE, SHARED),
        ("dispatch 2", WIRE_LANE, EXCHANGE),
        ("experts 2", COMPUTE_LANE, EXPERTS),
        ("combine 2", WIRE_LANE, EXCHANGE),
        ("attention 3", COMPUTE_LANE, ATTENTION),
    ):
        blocks.append(Block(lane, now, length, label))
        now += length
    return blocks


def in_pieces() -> list[Block]:
    """The same function, each exchange in two pieces: experts compute on one while the other is on its way."""
    half_wire, half = EXCHANGE / 2, EXPERTS / 2
    start = ATTENTION + SHARED
    first = start + half_wire
    end = first + EXPERTS
    return [
        Block(COMPUTE_LANE, 0, ATTENTION, "attention 2"),
        Block(COMPUTE_LANE, ATTENTION, SHARED, "shared"),
        Block(WIRE_LANE, start, half_wire, "disp."),
        Block(WIRE_LANE, first, half_wire, "disp."),
        Block(COMPUTE_LANE, first, half, "experts"),
        Block(COMPUTE_LANE, first + half, half, "experts"),
        Block(WIRE_LANE, first + half, half_wire, "comb."),
        Block(WIRE_LANE, end, half_wire, "comb."),
        Block(COMPUTE_LANE, end + half_wire, ATTENTION, "attention 3"),
    ]


def under_full() -> list[Block]:
    """FarSkip: the combine before, and then the dispatch, run under the attention; the next combine under the next."""
    experts = ATTENTION + SHARED
    return [
        Block(COMPUTE_LANE, 0, ATTENTION, "attention 2"),
        Block(WIRE_LANE, 0, EXCHANGE, "combine 1"),
        Block(COMPUTE_LANE, ATTENTION, SHARED, "shared"),
        Block(WIRE_LANE, EXCHANGE, EXCHANGE, "dispatch 2"),
        Block(COMPUTE_LANE, experts, EXPERTS, "experts 2"),
        Block(COMPUTE_LANE, experts + EXPERTS, ATTENTION, "attention 3"),
        Block(WIRE_LANE, experts + EXPERTS, EXCHANGE, "combine 2"),
    ]


def timeline() -> str:
    """One layer, as written, in two pieces, and under `full`, on a rank's processors and on the wire."""
    tracks = (
        ("as written", as_written()),
        ("pieces=2, the same function", in_pieces()),
        ('connectivity="full", another function', under_full()),
    )
    unit, left = 32.0, 84.0
    whole = max(block.start + block.length for _, blocks in tracks for block in blocks)
    parts: list[str] = []
    for number, (title, blocks) in enumerate(tracks):
        top = 12 + 92 * number
        parts.append(text(16, top + 14, title, size=13))
        for lane, name in ((COMPUTE_LANE, "compute"), (WIRE_LANE, "network")):
            y = top + 24 + 28 * lane
            parts += [text(16, y + 15, name, size=11, colour=FAINT), box(left, y, whole * unit, 22, IDLE)]
        parts += [drawn for block in blocks for drawn in _block(block, left, top + 24, unit)]
    return picture(int(left + whole * unit + 16), 292, "One layer of experts, over time", parts)


def _block(block: Block, left: float, top: float, unit: float) -> Sequence[str]:
    x, y, width = left + block.start * unit, top + 28 * block.lane, block.length * unit
    fill = COMPUTE if block.lane == COMPUTE_LANE else WIRE
    label = text(x + width / 2, y + 15, block.label, size=10, anchor="middle")
    return [box(x + 0.5, y, width - 1, 22, fill, stroke=FAINT), label]


PICTURES = {"connectivities.svg": connectivities, "timeline.svg": timeline}


def main() -> None:
    """Write all pictures."""
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
