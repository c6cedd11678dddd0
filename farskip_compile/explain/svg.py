"""Vector drawings for the report page: the connectivity table, and the wiring of one layer.

Contract: gives SVG elements as text for an HTML page; colours come from the page's style sheet by class, so that they
follow its light or dark theme; every cell of a table has a tooltip.
"""

from __future__ import annotations

from html import escape

from farskip_compile.explain.layout import Cell, cells, shown_layers
from farskip_compile.passes.residual.table import Table

CELL, NAMES, HEAD = 24, 92, 22

CLASSES = {Cell.READ: "read", Cell.LEFT_OUT: "left-out", Cell.SKIPPED: "skipped", Cell.OWN: "own"}
TOOLTIPS = {
    Cell.READ: "{row} reads {term}",
    Cell.LEFT_OUT: "{row} read {term} as written; the rewiring leaves it out",
    Cell.SKIPPED: "{row} does not read {term} in the model as written",
    Cell.OWN: "{row} adds {term}",
}


def connectivity(table: Table) -> str:
    """`table`; of a deep model only the layers that tell everything."""
    shown = set(shown_layers(table).layers)
    rows = [(row, line) for row, line in zip(table.rows, cells(table), strict=True) if row.layer in shown]
    hidden = {index for row in table.rows if row.layer not in shown for index in row.terms}
    columns = [index for index in range(len(table.terms)) if index not in hidden]
    width, height = NAMES + CELL * len(columns) + 2, HEAD + CELL * (len(rows) + 1) + 2
    parts = [
        f'<svg class="table" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="Connectivity table: {len(rows)} sub-blocks, {len(columns)} terms">'
    ]
    for place, index in enumerate(columns):
        x = NAMES + CELL * (place + 0.5)
        parts.append(
            f'<text class="name" x="{x:g}" y="{HEAD - 7}" text-anchor="middle">{table.terms[index].name}</text>'
        )
    for number, (row, line) in enumerate(rows):
        y = HEAD + CELL * number
        parts.append(_row_name(row.name, y))
        for place, index in enumerate(columns):
            parts.append(_cell(line[index], NAMES + CELL * place, y, row.name, table.terms[index].name))
    y = HEAD + CELL * len(rows)
    parts.append(_row_name("final norm", y))
    for place, index in enumerate(columns):
        parts.append(_cell(Cell.READ, NAMES + CELL * place, y, "the final norm", table.terms[index].name))
    return "".join(parts) + "</svg>"


def legend(table: Table) -> str:
    """The meaning of the colours that occur."""
    present = {cell for line in cells(table) for cell in line}
    items = [
        '<span class="key"><svg width="16" height="16" viewBox="0 0 24 24" aria-hidden="true">'
        f"{_cell(cell, 0, 0)}</svg>{escape(str(cell))}</span>"
        for cell in CLASSES
        if cell in present
    ]
    return f'<p class="legend">{"".join(items)}</p>'


def _row_name(name: str, y: float) -> str:
    return f'<text class="name" x="{NAMES - 8}" y="{y + CELL / 2 + 4:g}" text-anchor="end">{escape(name)}</text>'


def _cell(cell: Cell, x: float, y: float, row: str = "", term: str = "") -> str:
    if cell is Cell.LATER:
        return ""
    tip = f"<title>{escape(TOOLTIPS[cell].format(row=row, term=term))}</title>" if row else ""
    square = f'<rect x="{x + 1:g}" y="{y + 1:g}" width="{CELL - 2}" height="{CELL - 2}" rx="3"/>'
    middle_x, middle_y = x + CELL / 2, y + CELL / 2
    mark = ""
    if cell is Cell.LEFT_OUT:
        mark = f'<circle cx="{middle_x:g}" cy="{middle_y:g}" r="4.5"/>'
    elif cell is Cell.OWN:
        mark = f'<path d="M{middle_x - 4:g} {middle_y:g}h8M{middle_x:g} {middle_y - 4:g}v8"/>'
    return f'<g class="{CLASSES[cell]}">{tip}{square}{mark}</g>'


def standard_layer() -> str:
    """One MoE layer as models write it: everything reads everything before it."""
    return _picture(
        "Standard wiring of one layer",
        [
            _line("trunk", "M16 150H444"),
            _line("wire", "M44 150V60H66"),
            _box(66, 40, 96, 40, "attention"),
            _line("wire", "M162 60H186V141", arrow=True),
            _line("wire", "M222 150V60H240"),
            _line("wire", "M222 150V236H244"),
            _box(240, 40, 104, 40, "shared experts"),
            _box(244, 208, 140, 56, "routed experts", "dispatch, combine", is_far=True),
            _line("wire", "M344 60H364V141", arrow=True),
            _line("far", "M384 236H410V159", arrow=True),
            _plus(186, 150),
            _plus(364, 150),
            _plus(410, 150),
            _label(16, 140, "x"),
            _label(436, 140, "x"),
            _note(212, 240, "read x + a: wait for the attention", "end"),
        ],
    )


def farskip_layer() -> str:
    """The same layer in FarSkip form: attention reads n, the experts read x."""
    return _picture(
        "FarSkip wiring of the same layer",
        [
            _line("trunk", "M16 150H444"),
            _line("early", "M16 60H66"),
            _box(66, 40, 96, 40, "attention"),
            _line("wire", "M162 60H186V141", arrow=True),
            _line("wire", "M44 150V236H66"),
            _line("wire", "M44 196H216"),
            _box(216, 178, 104, 36, "shared experts"),
            _line("wire", "M320 196H336V159", arrow=True),
            _box(66, 208, 140, 56, "routed experts", "dispatch, combine", is_far=True),
            _line("far", "M206 236H410V159", arrow=True),
            _line("early", "M366 150V60H444"),
            _plus(186, 150),
            _plus(336, 150),
            _plus(410, 150),
            _label(16, 140, "x"),
            _label(436, 140, "x"),
            _label(16, 50, "n"),
            _label(436, 50, "n"),
            _note(216, 256, "read x: do not wait for the attention", "start"),
            _note(358, 84, "n: without the routed experts", "end"),
        ],
    )


def _picture(name: str, parts: list[str]) -> str:
    return f'<svg class="wiring" viewBox="0 24 460 248" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _line(kind: str, path: str, arrow: bool = False) -> str:
    end = ""
    if arrow:
        x, y = path.rsplit("H", 1)[1].split("V")
        tip = -7 if float(y) < 150 else 7
        end = f'<path class="tip {kind}-tip" d="M{x} {y}l-4 {tip}h8z"/>'
    return f'<path class="{kind}" d="{path}"/>{end}'


def _box(x: int, y: int, width: int, height: int, text: str, below: str = "", *, is_far: bool = False) -> str:
    middle, center = x + width / 2, y + height / 2
    second = (
        f'<text class="small" x="{middle:g}" y="{center + 15:g}" text-anchor="middle">{below}</text>' if below else ""
    )
    return (
        f'<rect class="box{" far-box" if is_far else ""}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
        f'<text x="{middle:g}" y="{center + (-2 if below else 4):g}" text-anchor="middle">{text}</text>{second}'
    )


def _plus(x: int, y: int) -> str:
    return f'<circle class="plus" cx="{x}" cy="{y}" r="9"/><path class="sign" d="M{x - 4} {y}h8M{x} {y - 4}v8"/>'


def _label(x: int, y: int, text: str) -> str:
    return f'<text class="stream" x="{x}" y="{y}">{text}</text>'


def _note(x: int, y: int, text: str, anchor: str) -> str:
    return f'<text class="small" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'
