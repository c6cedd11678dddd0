"""Parts of `benchmarks/distillation.py`: train small MoE models on real text, rewire them, heal them, compare.

texts      English text: a dictionary for training, short quotations as another domain; or what Python itself has
"""
