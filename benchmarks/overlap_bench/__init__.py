"""The parts of `benchmarks/overlap.py`: exposed communication and step time, ours against every baseline.

    cells       which cells and variants         settings    what is run in them
    launch      starts the ranks of a group     ranks       what each of them runs
    steps, own_overlap: what is compared
    alone       compute and communication alone, rate and profile
    steps, profiled, generated, bound           the four kinds of figures
    results     one cell, and the file of all   targets     what is to be shown
    terminal, page, plot: how it is shown

Contract: only `ranks` and what it imports need torch, so that tables are made in a moment.
"""
