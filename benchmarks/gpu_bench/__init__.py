# SPDX-License-Identifier: Apache-2.0
"""What `gpu.py` measures on one device, a part in a file; `device.py` is all that a CPU does otherwise."""
