# SPDX-License-Identifier: Apache-2.0
"""Errors aside, what every floor above uses: text, JSON, files in and out, extras."""
