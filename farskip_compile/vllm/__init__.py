# SPDX-License-Identifier: Apache-2.0
"""A rewired model in vLLM, with no code for the model: an entry point of `vllm.general_plugins`.

    plugin          what vLLM loads
    asked           what a configuration asks for: options, the manifest beside the weights, AMD's keys
    refusals        what can't be served rewired, said before any worker starts
    checkpoints     guarded checkpoints load as what they are
    hooks           where vLLM is entered; the only file that replaces something of vLLM's
    rewiring        what is done to a graph, step by step
      operators     what vLLM's operators are
      norms         add and norm in one operator, apart and together again
      overlap       all-reduces as a start and a wait, in the order of our scheduler
    shared_experts  out of the operator that hides them, so that their all-reduce can start early
    outcome         what each worker asserts once it is warm
    compare         vLLM's tokens and log-probabilities against transformers' (`farskip check serving`)

Contract: `plugin.register` is called in each of vLLM's processes. It changes nothing for a model that nobody asks to
rewire, and imports next to nothing. For one that is to be rewired, vLLM serves the rewired model or does not start.

Checked on vLLM 0.31 and 0.32; others are refused.
"""
