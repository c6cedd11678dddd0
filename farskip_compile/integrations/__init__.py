# SPDX-License-Identifier: Apache-2.0
"""What training loops of others need so that what they train runs rewired, and what they save says so.

Contract: a module for each library, which alone imports it; none of them changes anything of that library that others
see. Loops without a module here need none: `docs/integrations` says how.

    trainer         transformers' Trainer, and what derives from it (TRL): a callback
    accelerating    accelerate: a plugin for `Accelerator(dynamo_plugin=...)`
    lightning       Lightning's Trainer: a callback
"""
