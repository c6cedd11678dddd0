# SPDX-License-Identifier: Apache-2.0
"""Where FarSkip pays and where it does not, by prediction: sweeps over scenarios at full size, and their page."""
