# SPDX-License-Identifier: Apache-2.0
"""Fuzzing: generated graphs, spoiled graphs and architectures in any number, on all cores. `python -m tests.fuzz`."""
