# SPDX-License-Identifier: Apache-2.0
"""Exports of Nsight Systems, made by hand: the schema that `nsys export --type sqlite` writes, and a golden trace.

The tables are those of a version 3 export (Nsight Systems 2025; "SQLite Schema Reference" of its User Guide), with all
their columns; those that an export leaves out when they are empty are left out here, too.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from tests.profiling.golden import ATTENTION, Golden
from tests.profiling.gpu_traces import GEMM, SEND_RECV
from tests.profiling.traces import BASE

GPU = "start! end! deviceId! contextId! greenContextId streamId! correlationId globalPid"
SCHEMA = {
    "StringIds": "id! value!",
    "TARGET_INFO_SESSION_START_TIME": "utcEpochNs utcTime localTime",
    "TARGET_INFO_SYSTEM_ENV": "globalVid devStateName! name! nameEnum! value!",
    "CUPTI_ACTIVITY_KIND_KERNEL": f"{GPU} demangledName! shortName! mangledName launchType cacheConfig "
    "registersPerThread! gridX! gridY! gridZ! blockX! blockY! blockZ! staticSharedMemory! dynamicSharedMemory! "
    "localMemoryPerThread! localMemoryTotal! gridId! sharedMemoryExecuted graphNodeId sharedMemoryLimitConfig",
    "CUPTI_ACTIVITY_KIND_MEMCPY": f"{GPU} bytes! copyKind! deprecatedSrcId srcKind dstKind srcDeviceId srcContextId "
    "dstDeviceId dstContextId migrationCause graphNodeId virtualAddress",
    "CUPTI_ACTIVITY_KIND_MEMSET": f"{GPU} value! bytes! graphNodeId memKind",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start! end! eventClass! globalTid correlationId nameId! returnValue! callchainId",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": f"{GPU} graphId! graphExecId!",
    "NVTX_EVENTS": "start! end eventType! rangeId category color text globalTid endGlobalTid textId domainId "
    "uint64Value int64Value doubleValue uint32Value int32Value floatValue jsonTextId jsonText binaryData",
}
"""Of each table its columns; those with a mark are never NULL."""
NAMES = frozenset(["demangledName", "shortName", "nameId", "textId"])
"""Columns that refer to StringIds."""
PROCESS = 1 << 48 | 4000 << 24
THREAD = PROCESS | 4001
Rows = dict[str, list[dict[str, Any]]]


class Export(NamedTuple):
    """A database, and what must be said of it."""

    rows: Rows
    golden: Golden


def write_nsys(path: Path, rows: Rows, *, without: str = "") -> Path:
    """Write a database of `rows`, which name tables and columns; names of kernels and ranges become StringIds.
    `without`: a column that this version does not have."""
    strings: dict[str, int] = {}
    with closing(sqlite3.connect(path)) as connection:
        for table, found in {**rows, "StringIds": []}.items():
            columns = [column for column in SCHEMA[table].split() if column.rstrip("!") != without]
            types = {"value!": "TEXT", "text": "TEXT"} if table != "CUPTI_ACTIVITY_KIND_MEMSET" else {}
            lines = [f'"{c.rstrip("!")}" {types.get(c, "INTEGER")}{" NOT NULL" * c.endswith("!")}' for c in columns]
            connection.execute(f"CREATE TABLE {table} ({', '.join(lines)})")
            for row in found:
                values = {c.rstrip("!"): 0 if c.endswith("!") else None for c in columns} | row
                values.pop(without, None)
                for name in NAMES & values.keys():
                    if isinstance(values[name], str):
                        values[name] = strings.setdefault(values[name], len(strings) + 1)
                connection.execute(
                    f"INSERT INTO {table} ({', '.join(map(repr, values))}) VALUES ({', '.join('?' * len(values))})",
                    list(values.values()),
                )
        connection.executemany("INSERT INTO StringIds VALUES (?, ?)", [(key, text) for text, key in strings.items()])
        connection.commit()
    return path


def gpu(start: float, end: float, stream: int = 7, correlation: int | None = None, **more: Any) -> dict[str, Any]:
    """A row of GPU work; times in microseconds."""
    times = {"start": round(1000 * start), "end": round(1000 * end)}
    return {**times, "deviceId": 0, "streamId": stream, "correlationId": correlation, "globalPid": PROCESS, **more}


def work(name: str, *args: Any, **more: Any) -> dict[str, Any]:
    return gpu(*args, **more, demangledName=name, shortName=name.split("(")[0])


def call(at: float, correlation: int) -> dict[str, Any]:
    start = round(1000 * at)
    known = {"globalTid": THREAD, "correlationId": correlation, "nameId": "cudaLaunchKernelExC_v11060"}
    return {"start": start, "end": start + 500, **known}


def nvtx(start: float, end: float | None, **name: Any) -> dict[str, Any]:
    stop = None if end is None else round(1000 * end)
    return {"start": round(1000 * start), "end": stop, "eventType": 59, "globalTid": THREAD, "domainId": 0, **name}


# stream 7   attention 0..100  copy 120..130  product 140..200                    fill 235..240
# ep 31             dispatch 60............150     combine 190....230                      unknown 240..250
# tp 35                all-reduce 100..120
# engine 40                                                  to a peer 220....240
# the dispatch by PyTorch's range, in which PyTorch copies, too; the combine by NCCL's, which it registers; a mark is no
# range
# exposed: 100..120, 130..140, 200..235, 240..250
NSYS = Export(
    {
        "TARGET_INFO_SESSION_START_TIME": [{"utcEpochNs": BASE, "utcTime": "2026-10-01T12:00:00"}],
        "TARGET_INFO_SYSTEM_ENV": [
            {"devStateName": "", "name": "OS", "value": "Linux"},
            {"devStateName": "", "name": "Hostname", "value": "node7"},
        ],
        "CUPTI_ACTIVITY_KIND_RUNTIME": [
            call(3, 11),
            call(6, 16),
            call(13, 12),
            call(23, 13),
            call(33, 14),
            call(43, 15),
        ],
        "NVTX_EVENTS": [
            nvtx(0, 9, text="layer 2"),
            nvtx(1, 8, text="c10d::alltoall_base_, seq = 3, op_id = 12, sizes = [[4096, 7168], [4096, 7168]]"),
            nvtx(2, 4, text="ncclGroupEnd"),
            nvtx(5, 7, text="aten::copy_, op_id = 13"),
            nvtx(10, 18, textId="ncclAlltoAll", domainId=3),
            nvtx(20, 28, textId="ncclAllReduce", domainId=3),
            nvtx(30, 38, text="aten::mm, op_id = 14"),
            nvtx(40, None, text="never ended"),
            {**nvtx(41, 60, text="ncclAllGather"), "eventType": 34},
        ],
        "CUPTI_ACTIVITY_KIND_KERNEL": [
            work(ATTENTION, 0, 100),
            work(SEND_RECV, 60, 150, 31, 11),
            work(
                "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<(unsigned long)4096>)",
                100,
                120,
                35,
                13,
            ),
            work(GEMM, 140, 200, 7, 14),
            work(SEND_RECV, 190, 230, 31, 12),
            work(SEND_RECV, 240, 250, 31, 15),
        ],
        "CUPTI_ACTIVITY_KIND_MEMCPY": [
            gpu(120, 130, 7, 16, copyKind=8, bytes=4096),
            gpu(220, 240, 40, copyKind=10, bytes=4096, srcDeviceId=0, dstDeviceId=1),
        ],
        "CUPTI_ACTIVITY_KIND_MEMSET": [gpu(235, 240)],
    },
    Golden(
        [],
        total=(150, 75),
        kinds={
            "all_to_all": (2, 130, 60),
            "all_reduce": (1, 20, 20),
            "peer_copy": (1, 20, 15),
            "send_recv": (1, 10, 10),
        },
        notes=("1 event without an end", "1 kernel of grouped sends", "Copies between GPUs (1) count as"),
    ),
)
