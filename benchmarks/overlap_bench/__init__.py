"""The parts of `benchmarks/overlap.py`: exposed communication and step time, ours against every baseline.

    cells       which cells there are           settings    what is run in them
    launch      starts the ranks of a group     mailbox     what they ask it for while they run
    ranks       what each of them runs          names, variants, steps, own_overlap: what is compared
    replay      compute alone                   communication, rates, hardware: the link
    timing, exposure, output_code, bound        the four kinds of figures
    results     a cell, put together            store       the file of all cells
    targets     what is to be shown             terminal, page, plot: how it is shown

Contract: of these, `ranks` and what it imports need torch; the rest does not, so that tables are made in a moment.
"""
