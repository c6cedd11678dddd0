# SPDX-License-Identifier: Apache-2.0
"""Guards that keep a model that is to run rewired from running in its original wiring without a word.

compilers            tells this package's backends, and code that is traced for them
forward              guards a model whose forward runs rewired or not at all
compiled             guards a model that is compiled in place, and whose forward runs uncompiled
activity             counts the calls of this backend and the runs of its graphs in each thread
evidence             checks that every graph of a model which runs in somebody else's loop was rewired as it must be
checkpoints          loads checkpoints that `manifest/guarded.py` has marked as guarded models
limit                watches functions of which Dynamo compiles no further version
wrappers             watches methods that `torch.compile(model)` hands to the model in it, and `torch.export`
adapters             watches `generate` of a `PeftModel`, which calls the model inside of the compiled one
adapter_checkpoints  saves adapters of such models as `manifest/guarded_adapter.py` marks them, and loads them guarded
report               raises the error, or with `strict=False` warns
generation           refuses `generate(compile_config=...)`, which compiles decode steps only
"""
