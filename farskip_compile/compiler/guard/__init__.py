# SPDX-License-Identifier: Apache-2.0
"""A model that is to run rewired does not run in its original wiring without a word.

compilers     is a backend ours, and is this code being traced for it
forward       a model whose forward runs rewired or not at all
compiled      a model that is compiled in place, and whose forward runs uncompiled
activity      how often this backend was called or a graph of it ran, in this thread
evidence      that every graph of a model which runs in a loop of others was rewired, as it must be
checkpoints   classes of transformers load checkpoints that `manifest/guarded.py` has marked, whole, as such models
limit         functions of which Dynamo compiles no further version
wrappers      methods that `torch.compile(model)` hands to the model in it, and `torch.export`
adapters      `generate` of a `PeftModel`, which calls the model inside of what is compiled
adapter_checkpoints  adapters of such models are saved as `manifest/guarded_adapter.py` marks them, and load as such
report        the error, or with `strict=False` the warning
generation    `generate(compile_config=...)`, which compiles decode steps only
"""
