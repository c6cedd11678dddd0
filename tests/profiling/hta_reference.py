# SPDX-License-Identifier: Apache-2.0
"""Prints what HolisticTraceAnalysis says of the constructed GPU traces, for `test_gpu.py`.

A script, not a test: HolisticTraceAnalysis brings JupyterLab and plotly, some 475 MB. In an environment of its own:

    pip install HolisticTraceAnalysis==0.5.0 && python tests/profiling/hta_reference.py 12
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    from gpu_traces import random_gpu_events
    from hta.trace_analysis import TraceAnalysis

    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            document = {"distributedInfo": {"rank": seed}, "traceEvents": random_gpu_events(seed)}
            (Path(folder) / f"{seed}.json").write_text(json.dumps(document))
        found = TraceAnalysis(trace_dir=folder).get_comm_comp_overlap(visualize=False)
    print(found.sort_values("rank")["comp_comm_overlap_pctg"].tolist())
