# SPDX-License-Identifier: Apache-2.0
"""Convert only what pays: which rows of a model to rewire (arXiv 2511.11505, section 5.1, converts the last layers).

    damage     what each row does to held-out text when it is rewired alone: one capture, many connectivities
    choose     how much communication a connectivity leaves exposed, by the cost model; the rows that hide most for
               their damage: `find_front`
    render     the front as a table and as a picture

    damage = measure_damage(model, held_out)
    with fake_ranks(8):
        front = find_front(parallel_model, inputs, damage, config=FarSkipConfig(profile="h100"))
    point = front.for_share(0.8)
    manifest = describe(model, ids, connectivity=connectivity_of(damage, point.rows))

Healing comes afterwards: `farskip_compile.healing.distill`.
"""

from farskip_compile.healing.plan.choose import Exposure, Front, find_front, with_estimates
from farskip_compile.healing.plan.damage import Damage, connectivity_of, measure_damage, measure_together

__all__ = [
    "Damage",
    "Exposure",
    "Front",
    "connectivity_of",
    "find_front",
    "measure_damage",
    "measure_together",
    "with_estimates",
]
