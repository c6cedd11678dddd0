# SPDX-License-Identifier: Apache-2.0
"""What vLLM loads: the entry point of `vllm.general_plugins`.

Contract: `register` is called in each of vLLM's processes, and may be called again. vLLM logs a plugin that can't be
imported and goes on without it, so nothing is imported here that could fail: what fails in `register` ends the process.
"""

from __future__ import annotations


def register() -> None:
    """Wrap what vLLM has loaded (`hooks`)."""
    from farskip_compile.vllm import hooks

    hooks.install()
