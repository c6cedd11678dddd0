# SPDX-License-Identifier: Apache-2.0
"""Proof that `normalize` kept the function: an account of memory of the graph before it, and of the graph after it."""
