"""Names of the variants; `variants.py` makes them. A module of its own, so that tables don't need torch.

plain             the plain model, compiled by Inductor: torch.compile out of the box
inductor overlap  the same with Inductor's own overlap scheduling, on the graph (`own_overlap.py`)
inductor passes   the same with its passes on kernels
overlapped eager  the FarSkip form written by hand, in eager mode, as AMD trains it: async collectives, hooks that
                  wait for those of the backward pass, and an autograd engine with other priorities
hand-written      the FarSkip form written by hand, compiled by Inductor
none              the plain model by our backend, connectivity "none": scheduled, not rewired
full              the same, connectivity "full": rewired and scheduled
compute           like hand-written, with collectives that replay recorded results: the compute of the step
communication     the collectives of that step one after another, and nothing else

The last two are of the FarSkip form, which the bound is for: under tensor parallelism its backward pass has fewer
all-reduces than the plain model's, because Inductor merges those of the same gradient.
"""

from __future__ import annotations

PLAIN, OVERLAP, PASSES = "plain", "inductor overlap", "inductor passes"
EAGER, HAND = "overlapped eager", "hand-written"
NONE, FULL = "none", "full"
COMPUTE, COMMUNICATION = "compute", "communication"

ORDER = (PLAIN, OVERLAP, PASSES, EAGER, HAND, NONE, FULL)
"""The order in tables: baselines, then ours."""
OURS = (NONE, FULL)
BASELINES = (PLAIN, OVERLAP, PASSES, EAGER, HAND)
PROFILED = (OVERLAP, PASSES, *OURS)
"""Variants that depend on the hardware profile: another link needs another compile."""
COMPARED = ((OVERLAP, PLAIN), (PASSES, PLAIN), (NONE, PLAIN), (FULL, HAND), (EAGER, HAND))
"""(variant, what it must equal)."""
