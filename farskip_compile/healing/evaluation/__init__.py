# SPDX-License-Identifier: Apache-2.0
"""Evaluation by lm-eval: a checkpoint in the wiring that its manifest describes, and beside the original.

    found       the manifest of a checkpoint, if it has one
    model       `FarSkipLM`, which lm-eval knows as the model `farskip`
    difference  two results sample by sample: differences, their standard errors, limits
    run         both checkpoints on the same tasks
    table       the comparison as a table
    __main__    lm-eval's own command line, with the model `farskip`

Needs the extra `eval`. Importing this package registers the model with lm-eval.
"""

from farskip_compile.healing.evaluation.difference import Comparison
from farskip_compile.healing.evaluation.model import FarSkipLM
from farskip_compile.healing.evaluation.run import EvaluationSettings, evaluate

__all__ = [
    "Comparison",
    "EvaluationSettings",
    "FarSkipLM",
    "evaluate",
]
