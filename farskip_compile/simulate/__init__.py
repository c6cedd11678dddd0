"""What FarSkip will bring on hardware that is not here: models at full size, on fake tensors and fake ranks.

    scenario -> rank_model -> graphs -> programs -> orders -> prediction

Start reading at `predict.py`. `architectures` knows models by name, `cuts`, `experts` and `attention` make of the code
of transformers what one rank runs, `published` is AMD's order.
"""

from farskip_compile.simulate.architectures import KNOWN, Architecture, architecture
from farskip_compile.simulate.predict import PhaseResult, Prediction, StepResult, predict, predict_each
from farskip_compile.simulate.scenario import Phase, Scenario

__all__ = [
    "KNOWN",
    "Architecture",
    "Phase",
    "PhaseResult",
    "Prediction",
    "Scenario",
    "StepResult",
    "architecture",
    "predict",
    "predict_each",
]
