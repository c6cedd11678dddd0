# SPDX-License-Identifier: Apache-2.0
"""`python -m farskip_compile.healing.evaluation ...`: the command `lm_eval ...`, where `--model farskip` is known.

lm-eval finds models of other packages by their entry point (`lm_eval.models`) from the release after 0.4.13 on. Until
then a model is known only where the module that holds it has been imported.
"""

from lm_eval.__main__ import cli_evaluate

import farskip_compile.healing.evaluation.model  # noqa: F401  it registers the model

if __name__ == "__main__":
    cli_evaluate()
