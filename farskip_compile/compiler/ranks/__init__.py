# SPDX-License-Identifier: Apache-2.0
"""Ranks in agreement: what each compile launches, and with which options, compared at its first run."""
