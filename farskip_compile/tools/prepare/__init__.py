# SPDX-License-Identifier: Apache-2.0
"""The function `prepare(model)`: what a model needs before `torch.compile` can capture it as one graph.

Contract: an unmodified model of `transformers` or any other module comes in; it is changed in place, and a
`Preparation` goes out: a record of each change, with `undo`. Parameters, buffers, random numbers and mode stay as they
are. A second call changes nothing. The function of the model stays the same: another experts implementation sums in
another order (results agree within rounding), everything else is bit-equal. What would need code for one family of
models, or is not the same function, is left alone and noted. `transformers` is imported only if the program has it
imported.

1. `expert_parallel`: an exchange of tokens between ranks that captures
2. `kernels`:         an experts implementation that captures, where transformers lets one choose
3. `replace`:         another forward in place of a loop over experts, if both are the same function (`same_function`):
                      a kernel of transformers (`kernels`), or the loop's own source without what in it depends on data
                      (`rewrite`, `loop_source`)
4. `bookkeeping`:     hooks for router logits and hidden states; `generate` must not compile around this backend
5. `preserve_state`:  one eager call, if example inputs are given
"""

from farskip_compile.tools.prepare.changes import Change, Preparation
from farskip_compile.tools.prepare.expert_parallel import register_expert_parallel, switch_expert_parallel
from farskip_compile.tools.prepare.main import prepare

__all__ = ["Change", "Preparation", "prepare", "register_expert_parallel", "switch_expert_parallel"]
