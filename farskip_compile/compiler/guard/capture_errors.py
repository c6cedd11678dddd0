# SPDX-License-Identifier: Apache-2.0
"""A hint added to Dynamo's own error, where a model can't be captured as one graph.

Contract: with `fullgraph=True` and this backend, an error of Dynamo for which a hint is known here gets a note with the
hint (`BaseException.add_note`). The error stays Dynamo's: its class, its text and its stack.
"""

from __future__ import annotations

from farskip_compile._compat import CAPTURE_ERRORS, BackendCompilerFailed, TransparentError, failing_line
from farskip_compile._compat.failing import before_dynamo_raises
from farskip_compile._compat.reached import Compiler
from farskip_compile.compiler.guard.compilers import is_ours
from farskip_compile.verify.graph_break_hints import DEPENDS_ON_DATA, depends_on_data, known_break


def watch() -> None:
    """Watch all captures from now on. The import of the backend calls this once."""
    before_dynamo_raises(_add_hint)


def _add_hint(error: Exception, compiler: Compiler) -> None:
    if not is_ours(compiler) or not isinstance(error, CAPTURE_ERRORS):
        return
    if isinstance(error, TransparentError | BackendCompilerFailed):  # what a backend raised
        return
    text = str(error)
    known = known_break(f"{text} {failing_line(error)}")
    if known is not None:
        error.add_note(f"farskip: {known.reason}. Way out: {known.way_out}")
    elif depends_on_data(text):
        error.add_note(f"farskip: way out: {DEPENDS_ON_DATA}")
