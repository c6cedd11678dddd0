# SPDX-License-Identifier: Apache-2.0
"""What training loops of others need so that what they train runs rewired, and what they save says so.

Contract: a module for each library, which alone imports it. Only `resume` changes something of a library that others
see. Loops without a module here need none: `docs/integrations` says how.

    trainer         transformers' Trainer, and what derives from it (TRL): a callback
    resume          what transformers' Trainer loads when it resumes, or loads the best checkpoint
    accelerating    accelerate: a plugin for `Accelerator(dynamo_plugin=...)`
    lightning       Lightning's Trainer: a callback
    state           the manifest as the extra state of a module, in checkpoints that hold nothing but states
"""
