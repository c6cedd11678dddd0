# SPDX-License-Identifier: Apache-2.0
"""Ranks in agreement: what each compiled graph launches, and with which options, compared at its first run."""
