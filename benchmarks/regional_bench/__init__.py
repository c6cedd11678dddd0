# SPDX-License-Identifier: Apache-2.0
"""The parts of `benchmarks/regional.py`: layers compiled one by one against the whole graph.

    compiled    seconds of cold and warm compiles       stepped     step times on a limited network, by overlap_bench
    results     the file of both                        targets     what is to be shown
    page        docs/regional.md

Contract: only what runs in worker processes and on ranks needs torch, so that tables are made in a moment.
"""
