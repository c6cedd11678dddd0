# SPDX-License-Identifier: Apache-2.0
"""The parts of `benchmarks/overlap.py`: exposed communication and step time, ours against every baseline.

    cells       which cells and variants        settings    what is run in them
    launch      starts the ranks of a group     ranks       what each of them runs
    steps       the variants, their timing      inductor    Inductor's own overlap, and generated code
    alone       compute and communication       profiled    exposure and peak memory
    bound       the least time                  results     one cell, and the file of all
    targets     what is to be shown             terminal, page, plot: how it is shown

Contract: only `ranks` and what it imports need torch, so that tables are made in a moment.
"""
