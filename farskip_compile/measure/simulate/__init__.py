# SPDX-License-Identifier: Apache-2.0
"""Predictions of FarSkip on other hardware: models at full size, on fake tensors and fake ranks.

    scenario -> rank_model -> graphs -> programs -> orders -> results

Start reading at `predict.py`. `cuts` and `attention` turn the code of transformers into the model of one rank.
"""

from farskip_compile.base.choices import Phase
from farskip_compile.measure.simulate.predict import predict, predict_each
from farskip_compile.measure.simulate.results import Prediction
from farskip_compile.measure.simulate.scenario import Scenario

__all__ = [
    "Phase",
    "Prediction",
    "Scenario",
    "predict",
    "predict_each",
]
