# SPDX-License-Identifier: Apache-2.0
"""Predictions at full size: what is cut, captured, placed, played and told."""
