"""Colours of the cells, the same in the picture and on the page.

Contract: read and left out differ in lightness as well as in hue, so the table survives colour blindness and a
black-and-white printer.
"""

from __future__ import annotations

from farskip_compile.explain.layout import Cell

LIGHT = {
    Cell.READ: "#9db8d9",
    Cell.LEFT_OUT: "#d9480f",
    Cell.SKIPPED: "#e5dbff",
    Cell.OWN: "#dfe3e8",
    Cell.LATER: "#ffffff",
}
DARK = {
    Cell.READ: "#3f6396",
    Cell.LEFT_OUT: "#ff9248",
    Cell.SKIPPED: "#4a3f6b",
    Cell.OWN: "#343a44",
    Cell.LATER: "#15181d",
}
