# SPDX-License-Identifier: Apache-2.0
"""A stream that is cut between two graphs: terms that the next one leaves out cross the cut apart, and in flight."""
