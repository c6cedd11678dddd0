# SPDX-License-Identifier: Apache-2.0
"""Parts of `benchmarks/distillation.py`: train small MoE models on real text, rewire them, heal them, compare.

rows, architectures           what is run
corpora, texts                on what
run_row, judge                how it is run
results, targets              what came out of it
page, plot                    how it is shown
"""
