# SPDX-License-Identifier: Apache-2.0
"""The passes that are cut and scheduled with, before differentiation and inside Inductor.

Contract: the configuration is bound at construction; equal passes make equal schedules on every rank; all are part of
the cache keys (the `uuid` of `PostGradPass`, the pickled state of `KernelPass`), so that a change of configuration,
hardware profile or source of this package never gets a stale artifact. Nothing is communicated or measured.

A graph goes through the files in this order:

    before_differentiation  cut in parts of the batch, or in pieces without drops (`micro_batches`, `without_drops`)
    post_grad               the user's own passes; mark, cut in pieces, leave in flight, schedule, announce; verified
    before_fusion           pins, which fusion keeps
    after_fusion            the order of the kernels, whose figures go into the announcement; verified
"""
