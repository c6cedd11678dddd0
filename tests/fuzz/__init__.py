"""Fuzzing: generated graphs, spoiled graphs and architectures in any number, on all cores. `python -m tests.fuzz`."""
