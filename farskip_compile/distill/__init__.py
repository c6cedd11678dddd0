"""Heal a rewired model by self-distillation (FCSD, arXiv 2511.11505, sections 2.2 and 3.1).

    config        the options
    batches       what a batch is, a stream of them with a position, how a model is called with one
    teacher       what the original says: frozen copies, or its largest logits on disk; forward KL, next-token loss
    ranks         several ranks: data parallelism, parameters that are spread
    run           one step, with its optimizer
    evaluate      held-out batches; the best weights
    records       JSON lines, progress bar, TensorBoard; the state of a run; the healed model with its manifest
    main          `self_distill`
    job           all of it from a file, for `farskip distill`; text files as batches

Start reading at `main`.
"""

from farskip_compile.distill.config import DistillConfig
from farskip_compile.distill.evaluate import HeldOut
from farskip_compile.distill.job import text_batches
from farskip_compile.distill.main import Distilled, self_distill

__all__ = ["DistillConfig", "Distilled", "HeldOut", "self_distill", "text_batches"]
