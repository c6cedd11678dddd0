"""Parts of `benchmarks/distillation.py`: train small MoE models on real text, rewire them, heal them, compare.

scale, rows, architectures, texts    what is run, and on what
run_row, planning, judge, workers    how it is run
results, targets, page, plot         what came out of it
"""
