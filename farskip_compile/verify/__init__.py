"""Proofs that run after each compile: of the rewiring, the schedule, and the order of kernels."""
