# SPDX-License-Identifier: Apache-2.0
"""Baselines with communication overlapped by hand, for models of `farskip_compile.models`; for benchmarks alone.

    overlapped_form       the FarSkip form, each collective launched early and awaited late
    chunked_form          the plain model, each exchange of tokens in chunks
    micro_batched_form    the plain model, the batch in two halves

Contract: no form uses the compiler, whose results and step times are compared with those of the forms.
"""
