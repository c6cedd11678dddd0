# SPDX-License-Identifier: Apache-2.0
"""Repair of trained weights after the rewiring, and the judgement of the result."""
