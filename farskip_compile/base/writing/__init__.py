# SPDX-License-Identifier: Apache-2.0
"""Folders that are written whole, by one process at a time."""
