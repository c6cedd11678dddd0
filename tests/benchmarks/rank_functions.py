# SPDX-License-Identifier: Apache-2.0
"""What the ranks of these tests run; importable by other processes, and without torch unless a function needs it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

SHOWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "EXTRA")


def show(*args):
    print(f"a line of rank {os.environ['RANK']}")
    return {"args": args, "pid": os.getpid(), **{name: os.environ.get(name) for name in SHOWN}}


def cores():
    return sorted(os.sched_getaffinity(0))


def what_it_was_given(text):
    """Its length, what is left on standard input, and the files beside the result."""
    return [len(text), sys.stdin.read(), [file.name for file in Path(os.environ["FARSKIP_RESULT"]).parent.iterdir()]]


def sleep_or_raise(rank, raising, folder, with_child=False):
    """The rank `raising` waits until the others sleep, and raises; None: nobody does. Each leaves its process id."""
    if rank == raising:
        while len(list(Path(folder).glob("*.pid"))) < int(os.environ["WORLD_SIZE"]) - 1:
            time.sleep(0.01)
        print("before the error")
        raise ValueError("this rank has a problem")
    pids = [os.getpid()]
    if with_child:
        pids.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
    part = Path(folder) / f"{rank}.part"
    part.write_text(" ".join(map(str, pids)))
    part.rename(Path(folder) / f"{rank}.pid")
    print("asleep")
    time.sleep(600)


def crash(rank):
    os.kill(os.getpid(), 11) if rank == 1 else time.sleep(600)


def unserialisable():
    return {1, 2}


def leave_early():
    os._exit(0)


def gloo_sum(rank, hosts):
    """The sum of all ranks over gloo, and what this host's interfaces are."""
    import socket

    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.full((1000,), float(rank + 1))
    dist.all_reduce(total)
    dist.barrier()
    dist.destroy_process_group()
    return {"sum": total[0].item(), "interfaces": sorted(name for _, name in socket.if_nameindex())}
