# SPDX-License-Identifier: Apache-2.0
"""Proofs that run after each compile: of the rewiring, the schedule, and the order of kernels."""
