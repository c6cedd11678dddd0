# SPDX-License-Identifier: Apache-2.0
"""What happened, as plain records: to each graph (`compile`), to its schedule (`schedule`), its wiring by name."""
