# SPDX-License-Identifier: Apache-2.0
"""A compiled graph that comes from a cache must have been made by a compile that this process has asked for.

Contract: what a compile was for (its identity, and its options) travels in the compiled graph (`ranks.announce`). The
backend notes what this process asks for, also where a warm cache answers and no pass runs. At the first run of a graph
the two are compared. Communicates nothing.

Inductor's caches are keyed by the identity, so a mismatch should never happen; it would be a wrong function, silently.
A process in which nothing was compiled (it was given compiled graphs as a package) has asked for nothing in particular.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from farskip_compile.compiler.ranks.common import differences
from farskip_compile.errors import VerificationError
from farskip_compile.records.announcement import Announcement

_asked: dict[str, Mapping[str, Any]] = {}
"""What the compiles of this process were for, the latest last: identity and options as text -> the options."""
_lock = threading.Lock()


def expect(identity: str, common: Mapping[str, Any]) -> None:
    """This process compiles a graph for these options (see `common_options`); graphs made for them may run in it."""
    with _lock:
        _asked[_text(identity, common)] = common


def refuse_stale(announced: Announcement) -> None:
    """Raise if this process has not asked for a graph that announces this.

    Raises:
        VerificationError: naming the options that differ from those asked for last.
    """
    with _lock:
        if not announced.identity or not _asked or _text(announced.identity, announced.common) in _asked:
            return
        wanted = next(reversed(_asked.values()))
    plain = json.loads(json.dumps(wanted))
    found = [f"{name} is {theirs}, asked for is {ours}" for name, ours, theirs in differences(plain, announced.common)]
    raise VerificationError(
        f"stale cache artifact: the compiled {announced.report.phase} graph was made for something else than this "
        f"process has asked for: {'; '.join(found) or 'the model, or what was recomputed, is not the same'}",
        way_out="empty the compile cache (TORCHINDUCTOR_CACHE_DIR) and please report this: it is a defect",
    )


def _text(identity: str, common: Mapping[str, Any]) -> str:
    return json.dumps([identity, common], sort_keys=True)
