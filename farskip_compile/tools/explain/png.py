# SPDX-License-Identifier: Apache-2.0
"""A connectivity table as a picture.

Contract: `draw` writes one picture of the whole table, readable from one layer to about a hundred. Up to `MOST_NAMED`
terms every row and column has its name; above that the axes count layers, and a magnified part stands in the corner
that a connectivity table leaves empty (nothing can be read before it exists).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from farskip_compile.base.extras import need
from farskip_compile.errors import ConfigError
from farskip_compile.passes.residual.table import Table
from farskip_compile.text_utils import printable
from farskip_compile.tools.explain.layout import LIGHT, Cell, cells, layer_of_term, present

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMED = 40
INK, FAINT = "#22262b", "#868e96"
CELL_INCHES = 0.34
RINGS: dict[Cell, dict[str, Any]] = {
    Cell.LEFT_OUT: {"marker": "o", "mfc": "none", "mec": "white", "mew": 1.3, "ms": 7},
    Cell.OWN: {"marker": "+", "mec": FAINT, "mew": 1.0, "ms": 6},
}


def draw(table: Table, path: Path, title: str) -> None:
    """Write `table`, which has rows, to `path`, whose suffix decides the format, under a title of one or two lines.

    Raises:
        ConfigError: matplotlib does not know the format, or the file can't be written.
        MissingPackageError: matplotlib is not installed.
    """
    need("a picture", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    is_named = len(table.terms) <= MOST_NAMED
    columns, rows = len(table.terms), len(table.rows)
    cell = CELL_INCHES if is_named else 12.0 / columns
    size = (max(7.0, columns * cell + 1.7), rows * cell + 1.65)
    figure: Figure = Figure(figsize=size, dpi=160, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    if path.suffix.lstrip(".").lower() not in canvas.get_supported_filetypes():
        known = ", ".join(sorted(canvas.get_supported_filetypes()))
        raise ConfigError(f"pictures can't be written as {path.suffix or 'a file without suffix'!r}", way_out=known)
    axes = figure.add_axes((1.3 / size[0], 0.25 / size[1], columns * cell / size[0], rows * cell / size[1]))
    _cells(axes, table, range(rows), range(columns), lines=1.2 if is_named else 0.0)
    if is_named:
        _name_axes(axes, table, range(rows), range(columns), size=9)
        _say_what_is_read(axes, "the terms that they read")
    else:
        _count_layers(axes, table)
        _magnify(figure, axes, table)
    head, _, rest = printable(title, lines=True).partition("\n")
    margin = 0.2 / size[0]
    words: dict[str, Any] = {"color": INK, "va": "top", "parse_math": False}  # a `$` in a name is a `$`
    figure.text(margin, 1 - 0.18 / size[1], head, fontsize=12, fontweight="bold", **words)
    figure.text(margin, 1 - 0.42 / size[1], rest, fontsize=9, **words)
    _legend(figure, table, (margin, 1 - 0.72 / size[1]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}", way_out="a path that can be written") from None


def _cells(axes: Axes, table: Table, rows: range, columns: range, lines: float) -> None:
    """Coloured squares, and a ring in those that the rewiring leaves out."""
    from matplotlib.colors import ListedColormap

    kinds = list(Cell)
    drawn = cells(table)
    values = [[kinds.index(drawn[row][column]) for column in columns] for row in rows]
    axes.pcolormesh(
        [c - 0.5 for c in (*columns, columns.stop)],
        [r - 0.5 for r in (*rows, rows.stop)],
        values,
        cmap=ListedColormap([LIGHT[kind] for kind in kinds]),
        vmin=-0.5,
        vmax=len(kinds) - 0.5,
        edgecolors="white" if lines else "none",
        linewidth=lines,
        antialiased=bool(lines),
    )
    for kind, style in RINGS.items() if lines else ():
        places = [(c, r) for r in rows for c in columns if drawn[r][c] is kind]
        axes.plot([c for c, _ in places], [r for _, r in places], linestyle="", **style)
    axes.set_xlim(columns.start - 0.5, columns.stop - 0.5)
    axes.set_ylim(rows.stop - 0.5, rows.start - 0.5)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, colors=INK, pad=3)
    for side in axes.spines.values():
        side.set_visible(False)


def _name_axes(axes: Axes, table: Table, rows: range, columns: range, size: float) -> None:
    axes.set_xticks(list(columns), table.names(columns), fontsize=size)
    axes.set_yticks(list(rows), [table.rows[r].name for r in rows], fontsize=size)


def _say_what_is_read(axes: Axes, what: str) -> None:
    axes.set_xlabel(f"rows: sub-blocks; columns: {what}", fontsize=9, color=INK)
    axes.xaxis.set_label_position("top")


def _count_layers(axes: Axes, table: Table) -> None:
    """Layer numbers on both axes, thin lines between every ten layers."""
    first_row: dict[int, int] = {}
    for index, row in enumerate(table.rows):
        first_row.setdefault(row.layer, index)
    first_column: dict[int | None, int] = {}
    for term in table.terms:
        first_column.setdefault(layer_of_term(term.name), term.index)
    marked = [layer for layer in first_row if layer % 10 == 0]
    axes.set_yticks([first_row[layer] for layer in marked], [f"layer {layer}" for layer in marked], fontsize=9)
    axes.set_xticks([first_column[layer] for layer in marked], [str(layer) for layer in marked], fontsize=9)
    _say_what_is_read(axes, "the terms that they read, by layer")
    for layer in marked[1:]:
        axes.axhline(first_row[layer] - 0.5, color="white", linewidth=0.6)
        axes.axvline(first_column[layer] - 0.5, color="white", linewidth=0.6)


def _magnify(figure: Figure, axes: Axes, table: Table) -> None:
    """Three layers in full detail, in the empty corner."""
    rewired = [row.layer for row in table.rows if row.left_out]
    last = table.rows[-1].layer
    first = min(rewired[min(len(rewired) - 1, 4)] if rewired else last, max(last - 2, 0))
    inside = range(first, min(first + 3, last + 1))
    rows = [index for index, row in enumerate(table.rows) if row.layer in inside]
    columns = [term.index for term in table.terms if layer_of_term(term.name) in (first - 1, *inside)]
    row_range, column_range = range(rows[0], rows[-1] + 1), range(columns[0], columns[-1] + 1)
    area = axes.get_position()
    width, height = figure.get_size_inches()
    cell = min(0.32, 0.42 * area.width * width / len(columns), 0.36 * area.height * height / len(rows))
    wide, high = len(columns) * cell / width, len(rows) * cell / height
    part = figure.add_axes((area.x1 - wide, area.y1 - 0.55 / height - high, wide, high))
    _cells(part, table, row_range, column_range, lines=1.0)
    _name_axes(part, table, row_range, column_range, size=7.5)
    part.set_title(f"layers {inside.start} to {inside.stop - 1}, magnified", fontsize=9, color=INK, loc="left", pad=16)
    _connect(axes, part, row_range, column_range)


def _connect(axes: Axes, part: Axes, rows: range, columns: range) -> None:
    """A frame around what is magnified, and a line from it to the magnified part."""
    from matplotlib.patches import ConnectionPatch, Rectangle

    corner = (columns.start - 0.5, rows.start - 0.5)
    axes.add_patch(Rectangle(corner, len(columns), len(rows), fill=False, edgecolor=INK, linewidth=0.9))
    axes.add_artist(
        ConnectionPatch(
            (columns.stop - 0.5, rows.start + len(rows) / 2 - 0.5),
            (columns.start - 0.5 - 2.6, rows.start + len(rows) / 2 - 0.5),
            axes.transData,
            part.transData,
            color=FAINT,
            linewidth=0.9,
        )
    )


def _legend(figure: Figure, table: Table, place: tuple[float, float]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=LIGHT[cell], label=str(cell)) for cell in present(table)]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=place,
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        handlelength=1.0,
        handleheight=1.0,
        borderpad=0,
        borderaxespad=0,
        columnspacing=1.4,
    )
