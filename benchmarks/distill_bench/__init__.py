"""Parts of `benchmarks/distillation.py`: train small MoE models on real text, rewire them, heal them, compare.

rows, architectures, texts    what is run, and on what
run_row, judge                how it is run
results, page                 what came out of it
"""
