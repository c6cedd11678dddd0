# SPDX-License-Identifier: Apache-2.0
"""The check that a cached graph was made by a compile that this process has requested.

Contract: the identity and the options of a compile travel in the compiled graph (`ranks.announce`). The backend
remembers what this process requests, also where a warm cache answers and no pass runs. At the first run of a graph the
two are compared, without communication.

Inductor's caches are keyed by the identity, so a mismatch should never happen; it would be a wrong function, silently.
A process that has compiled nothing (it loaded compiled graphs from a package) accepts every graph.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from farskip_compile.compiler.ranks.common_options import differences
from farskip_compile.errors import VerificationError
from farskip_compile.records.announcement import Announcement

_requested: dict[str, Mapping[str, Any]] = {}
"""The options of the compiles that this process has requested, the latest last, by their key."""
_lock = threading.Lock()


def expect(identity: str, common: Mapping[str, Any]) -> None:
    """Remember that graphs made for these options (see `common_options`) may run in this process."""
    with _lock:
        _requested[_key(identity, common)] = common


def refuse_stale(announced: Announcement) -> None:
    """Raise if this process has not requested the graph that `announced` describes.

    Raises:
        VerificationError: names the options that differ from those requested last.
    """
    with _lock:
        if not announced.identity or not _requested or _key(announced.identity, announced.common) in _requested:
            return
        wanted = next(reversed(_requested.values()))
    plain = json.loads(json.dumps(wanted))
    found = [f"{name} is {theirs}, asked for is {ours}" for name, ours, theirs in differences(plain, announced.common)]
    raise VerificationError(
        f"stale cache artifact: the compiled {announced.report.phase} graph was made for something else than this "
        f"process has asked for: {'; '.join(found) or 'the model, or what was recomputed, is not the same'}",
        way_out="empty the compile cache (TORCHINDUCTOR_CACHE_DIR) and please report this: it is a defect",
    )


def _key(identity: str, common: Mapping[str, Any]) -> str:
    return json.dumps([identity, common], sort_keys=True)
