# SPDX-License-Identifier: Apache-2.0
"""The passes, installed as `farskip_compile.passes`; the folder stands at the top level for the reader.

`contract.PASSES` is the only place where the order of the passes is written down. A pass is a plain function with typed
arguments and a typed result; `compiler/pipeline.py` and `compiler/inductor_passes` call it through
`passes/runner.py`, which refuses any other order. No pass keeps state or reads the configuration by itself.

`farskip_compile.verify` checks each pass that changes a graph, and no option switches that off: the runner delivers no
graph that was changed and not verified since.

All passes stand on `graph.ops` and `graph.effects`, and on `residual.termset` and `residual.table`, the data structure
that they hand on.
"""
