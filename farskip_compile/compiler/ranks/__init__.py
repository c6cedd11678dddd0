# SPDX-License-Identifier: Apache-2.0
"""Comparison across ranks of the collectives and the options of each compile, at its first run."""
