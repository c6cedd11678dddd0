# SPDX-License-Identifier: Apache-2.0
"""A plugin of vLLM for tests: on a CPU, the graphs that a GPU gets, in mode 3.

And mode 1, which vLLM's runner for CPUs leaves out.

Contract: `register` is an entry point of `vllm.general_plugins`, in processes that were started with `LIKE_A_GPU`: its
value is the backend of mode 3's pieces (`eager`, since vLLM's Inductor passes ask for CUDA operators). Collectives,
routed experts, norms are operators of vLLM's then, as on a GPU, and vLLM splits the graph at attention.
"""

import os
from pathlib import Path


def register() -> None:
    backend = os.environ.get("LIKE_A_GPU")
    if not backend:
        return
    import torch
    from vllm.config import CompilationMode
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
    from vllm.platforms import current_platform
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    platform = type(current_platform)
    platform.use_custom_op_collectives = classmethod(lambda cls: True)

    def all_reduce(self, value):
        value = value.clone()
        torch.distributed.all_reduce(value, group=self.device_group)
        return value

    CpuCommunicator.all_reduce = all_reduce

    def select(self):
        return torch.ops.vllm.moe_forward if self._shared_experts is None else torch.ops.vllm.moe_forward_shared

    MoERunner._select_forward = select
    load = CPUModelRunner.load_model

    def load_model(self, *args, **kwargs):
        load(self, *args, **kwargs)
        if self.compilation_config.mode == CompilationMode.STOCK_TORCH_COMPILE:
            compiler = self.compilation_config.init_backend(self.vllm_config)
            self.model.compile(fullgraph=True, backend=compiler)

    CPUModelRunner.load_model = load_model
    plain = platform.check_and_update_config.__func__

    def check_and_update_config(cls, vllm_config):
        plain(cls, vllm_config)
        config = vllm_config.compilation_config
        if config.mode == CompilationMode.DYNAMO_TRACE_ONCE:
            config.mode = CompilationMode.VLLM_COMPILE
            config.ir_enable_torch_wrap = True
            config.compile_sizes = []
            config.backend = backend
            caches = ["vllm::unified_kv_cache_update", "vllm::unified_mla_kv_cache_update"]
            config.splitting_ops = [*config._attention_ops, *caches]

    platform.check_and_update_config = classmethod(check_and_update_config)


def installed_in(folder: Path) -> Path:
    """Make `folder` a place on `PYTHONPATH` from which vLLM loads this plugin."""
    (folder / "farskip_like_a_gpu.py").write_text(Path(__file__).read_text())
    info = folder / "farskip_like_a_gpu-0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: farskip-like-a-gpu\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nlike_a_gpu = farskip_like_a_gpu:register\n")
    return folder
