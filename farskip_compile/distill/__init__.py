"""Heal a rewired model by self-distillation (FCSD, arXiv 2511.11505, sections 2.2 and 3.1).

    config        what is asked for
    batches       what a batch is; a stream of them with a position (`texts`: from text files)
    calling       how a model is called for its logits
    teacher       what the original says: frozen copies (`teacher`), or its largest logits on disk (`teacher_cache`)
    loss          forward KL, next-token loss
    ranks         several ranks: data parallelism, parameters that are spread
    optimizer     AdamW, warm-up and cosine
    run           one step; the state of a run (`state`)
    evaluate      held-out batches; the best weights (`early_stop`)
    records       JSON lines, progress bar, TensorBoard
    save          the checkpoint with its manifest
    main          `self_distill`
    job           all of it from a file, for `farskip distill`

Start reading at `main`.
"""

from farskip_compile.distill.config import DistillConfig
from farskip_compile.distill.evaluate import HeldOut
from farskip_compile.distill.main import Distilled, self_distill
from farskip_compile.distill.texts import text_batches

__all__ = ["DistillConfig", "Distilled", "HeldOut", "self_distill", "text_batches"]
