"""Heal a rewired model by self-distillation (FCSD, arXiv 2511.11505, sections 2.2 and 3.1).

    config        the options
    batches       what a batch is, a stream of them with a position, how a model is called with one
    teacher       what the original says: frozen copies; `teacher_cache`: its largest logits on disk
    losses        forward KL, next-token loss, chunk by chunk
    head          the output head, found by dataflow; `asking`: how a model is asked for hidden states instead of logits
    stream        the student's residual stream held to the teacher's
    identity      which model it is
    ranks         several ranks: data parallelism, parameters that are spread
    beginning     what comes before the first step: the fold, `trials` of learning rates
    run           one step; `optimizer`: AdamW and its rates; `recomputing`: gradient checkpointing
    evaluate      held-out batches, and differences of evaluations; the best weights
    snapshot      the tensors of a run that change; `states`: on disk; `tensor_files`: how
    records       JSON lines, progress bar, TensorBoard; `checkpoints`: the healed model with its manifest
    main          `self_distill`
    documents     text, prompts with completions and conversations of local files; the split by document
    chat          which tokens are targets; `text_bytes`: how many bytes each stands for
    texts         documents as batches; `contamination`: held-out text that is in the training text
    job           all of it from a file, for `farskip distill`

Start reading at `main`.
"""

from farskip_compile.distill.config import DistillConfig
from farskip_compile.distill.contamination import find_overlap
from farskip_compile.distill.evaluate import HeldOut, paired
from farskip_compile.distill.main import Distilled, self_distill
from farskip_compile.distill.texts import text_batches
from farskip_compile.distill.trials import Trial

__all__ = ["DistillConfig", "Distilled", "HeldOut", "Trial", "find_overlap", "paired", "self_distill", "text_batches"]
