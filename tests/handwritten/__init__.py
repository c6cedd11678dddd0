# SPDX-License-Identifier: Apache-2.0
"""Models in the styles of those that others write by hand, and their FarSkip forms, also by hand."""
