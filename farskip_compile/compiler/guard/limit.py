# SPDX-License-Identifier: Apache-2.0
"""A guard for Dynamo's limit on recompiles, beyond which a model would run as it is written.

Contract: Dynamo compiles `torch._dynamo.config.recompile_limit` versions of one function; then it runs that function
and all that it calls as they are written, in every model of the process. A version beyond the limit for this backend is
a `PartialModelError`, at each call; with `strict=False` one `FarSkipWarning`, and Dynamo goes on. With
`fullgraph=True`, where Dynamo would raise an error without a hint, it is the same error, strict or not. Functions that
another backend compiles are left to Dynamo; but if this backend has compiled the same function, the registry notes that
the function runs as written from now on.
"""

from __future__ import annotations

import warnings

from farskip_compile._compat.limit import GivenUp, before_dynamo_gives_up
from farskip_compile.compiler.guard.compilers import is_ours, is_strict
from farskip_compile.compiler.guard.forward import source_behind
from farskip_compile.errors import FarSkipWarning, PartialModelError, Where
from farskip_compile.records.compile import frame_of
from farskip_compile.records.process_file import note_failure
from farskip_compile.records.registry import COMPILES
from farskip_compile.verify.graph_break_hints import known_break

WAY_OUT = (
    "calls that differ less (torch.compile(..., dynamic=True), torch._dynamo.mark_dynamic); a higher "
    "torch._dynamo.config.{limit}; torch.compiler.reset() before another model that shares the function is compiled"
)

AS_WRITTEN = "would from now on run it, and all that it calls, as it is written, not rewired"


def watch() -> None:
    """Watch all compiles from now on. The import of the backend calls this once."""
    before_dynamo_gives_up(_refuse)


def _refuse(found: GivenUp) -> None:
    is_other = not is_ours(found.compiler)
    frame = frame_of(found.compile_id)
    if is_other and (found.is_error or not COMPILES.has_graph_of(frame)):
        return
    why = (found.reason or "").partition("\n")[0].partition(" #")[0].strip()
    consequence = "fullgraph=True makes that an error" if found.is_error else AS_WRITTEN
    error = known_break(found.source) or PartialModelError(
        f"Dynamo has compiled {found.name!r} as often as it may ({found.limit} = {found.versions}), and {consequence}"
        + (f"; the last version did not fit: {why}" if why else ""),
        way_out=WAY_OUT.format(limit=found.limit),
        where=Where(source=source_behind(found.module, found.source)),
    )
    strict = not is_other and (found.is_error or is_strict(found.compiler))
    note_failure("error" if strict else "stopped", error, found.module, frame)
    if strict:
        raise error
    if is_other:
        return
    warnings.warn(f"farskip lets Dynamo go on (strict=False): {error}", FarSkipWarning, stacklevel=2)
