# SPDX-License-Identifier: Apache-2.0
"""Numbers and names in sentences, and text from outside that is safe to show.

Contract: text only. `printable` is what all names pass through that others chose (kernels, files, models, nodes) before
they reach a terminal or a page: a control character could end a line, move the cursor or colour what follows, and a
mark of writing direction could show another text than there is.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_ALWAYS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff"
"""Control characters, marks of direction, separators of lines, halves of characters; but no tab and no line feed."""
UNPRINTABLE = re.compile(f"[{_ALWAYS}]")
"""A character that is not to be printed, in text of several lines."""
_IN_A_LINE = re.compile(f"[{_ALWAYS}\t\n]")


def amount(number: int, noun: str) -> str:
    """`1 collective`, `2 collectives`; for nouns whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, always: str = "", prefix: str = "") -> str:
    """A question for a known name that is close to `name`, else `otherwise`; then what is `always` said. `prefix` is
    shown before the known name."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {prefix + close[0]!r}?" if close else otherwise
    return " ".join(part for part in (hint, always) if part)


def printable(text: str, *, lines: bool = False) -> str:
    """`text` with whatever is not to be printed as an escape: `\\x1b` for ESC. `lines`: line feeds and tabs stay."""
    return (UNPRINTABLE if lines else _IN_A_LINE).sub(_escape, text)


def shortened(text: str, most: int = 200) -> str:
    """`text` with its middle left out, if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
