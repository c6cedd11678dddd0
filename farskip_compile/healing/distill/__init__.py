# SPDX-License-Identifier: Apache-2.0
"""Heal a rewired model by self-distillation (FCSD, arXiv 2511.11505, sections 2.2 and 3.1).

    config        the options
    beginning     what comes before the first step: the fold, `trials` of learning rates
    run           one step; `optimizer`: AdamW and its rates; `recomputing`: gradient checkpointing
    student       the model in its FarSkip form, compiled whole or layer by layer
    stream        its residual stream held to the teacher's
    best          the best weights
    snapshot      the tensors of a run that change; `states`: on disk
    teacher_cache the original's largest logits on disk
    records       JSON lines, progress bar, TensorBoard; `checkpoints`: the healed model with its manifest
    main          `self_distill`
    job           all of it from a file, for `farskip heal CONFIG.toml`

It stands on `causal` (a model, batches, losses, ranks), `texts` and `fold`. Start reading at `main`.
"""

from farskip_compile.healing.causal.evaluate import paired
from farskip_compile.healing.distill.config import DistillConfig
from farskip_compile.healing.distill.main import Distilled, self_distill
from farskip_compile.healing.texts.contamination import find_overlap
from farskip_compile.healing.texts.loaders import text_batches

__all__ = [
    "DistillConfig",
    "Distilled",
    "find_overlap",
    "paired",
    "self_distill",
    "text_batches",
]
