# SPDX-License-Identifier: Apache-2.0
"""What is written in pictures: figures of matplotlib are kept on their way into a file, and read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def kept_figures() -> Iterator[list[Figure]]:
    """The figures that are saved inside the block."""
    from matplotlib.figure import Figure

    kept: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **options: object) -> None:
        kept.append(figure)
        save(figure, *args, **options)

    with mock.patch.object(Figure, "savefig", keep):
        yield kept


@contextmanager
def backend_kept() -> Iterator[None]:
    """Fails if the block changes how other figures are shown: a notebook would show none of its own any more."""
    import matplotlib

    others = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        yield
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(others)


def words(figure: Figure) -> str:
    """All text in a figure."""
    from matplotlib.text import Text

    return "\n".join(found.get_text() for found in figure.findobj(Text))


def assert_readable(figure: Figure, *said: str) -> None:
    """Each panel says what it is about, and has a legend, or the figure has one for all; it says what is `said`."""
    for axes in figure.axes:
        assert axes.get_xlabel() or any(axes.get_title(loc=place) for place in ("left", "center", "right")), axes
        assert axes.get_legend() is not None or figure.legends, axes
    for part in said:
        assert part in words(figure), part
