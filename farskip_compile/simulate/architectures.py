"""The models that `farskip simulate` knows by name: published dimensions, for the code of transformers.

Contract: data. `architecture(name)` gives the entry; a folder with a `config.json` of transformers is one, too. Nothing
is built here, and nothing is downloaded.

The passes never see these names: what they find, they find by dataflow, here as everywhere. `cuts` names the matrices
of the attention for the models whose plan for tensor parallelism in transformers leaves the attention whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from farskip_compile.errors import ConfigError
from farskip_compile.text_utils import did_you_mean

MLA_CUTS = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.q_b_proj": "colwise",
    "layers.*.self_attn.kv_b_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise",
}
HEAD_CUTS = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise",
}


@dataclass(frozen=True)
class Architecture:
    """One model: what to ask transformers for."""

    name: str
    model_type: str
    """Of transformers."""
    fields: Mapping[str, Any]
    """Of its configuration, where they are not the defaults."""
    source: str
    """Where the dimensions are published."""
    cuts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """For tensor parallelism, beside the plan of transformers."""
    folder: Path | None = None
    """Of a `config.json`, in place of all the above."""

    def config(self, layers: int | None = None) -> Any:
        """The configuration of transformers.

        Args:
            layers: only the first so many; None: all.

        Raises:
            ConfigError: transformers has no such model, or the model has fewer layers.
        """
        from transformers import AutoConfig

        try:
            if self.folder is not None:
                config = AutoConfig.from_pretrained(self.folder)
            else:
                config = AutoConfig.for_model(self.model_type, **self.fields)
        except (ValueError, OSError, KeyError) as error:
            raise ConfigError(
                f"transformers can't make a configuration of {self.name}: {error}",
                way_out="a newer transformers may know the model",
            ) from error
        config = config.get_text_config()
        if layers is not None:
            if not 1 <= layers <= config.num_hidden_layers:
                raise ConfigError(f"{self.name} has {config.num_hidden_layers} layers, not {layers}")
            config.num_hidden_layers = layers
            for kinds in ("layer_types", "mlp_layer_types"):
                if getattr(config, kinds, None) is not None:
                    setattr(config, kinds, getattr(config, kinds)[:layers])
        return config


V2_LITE = {
    "num_hidden_layers": 27, "first_k_dense_replace": 1, "hidden_size": 2048, "vocab_size": 102400,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_attention_heads": 16,
    "num_key_value_heads": 16, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "n_group": 1, "topk_group": 1, "topk_method": "greedy", "q_lora_rank": None, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 163840,
}  # fmt: skip
DEEPSEEK = "https://huggingface.co/deepseek-ai"
KNOWN = (
    Architecture(
        "deepseek-v3",
        "deepseek_v3",
        {
            "num_hidden_layers": 61, "first_k_dense_replace": 3, "hidden_size": 7168, "vocab_size": 129280,
            "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_attention_heads": 128,
            "num_key_value_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
            "n_group": 8, "topk_group": 4, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 163840,
        },
        f"{DEEPSEEK}/DeepSeek-V3/blob/main/config.json",
        MLA_CUTS,
    ),
    Architecture(
        "deepseek-v2",
        "deepseek_v2",
        {
            "num_hidden_layers": 60, "first_k_dense_replace": 1, "hidden_size": 5120, "vocab_size": 102400,
            "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_attention_heads": 128,
            "num_key_value_heads": 128, "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6,
            "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0,
            "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
            "v_head_dim": 128, "max_position_embeddings": 163840,
        },
        f"{DEEPSEEK}/DeepSeek-V2/blob/main/config.json",
    ),
    Architecture(
        "deepseek-v2-lite",
        "deepseek_v2",
        V2_LITE,
        f"{DEEPSEEK}/DeepSeek-V2-Lite/blob/main/config.json",
    ),
    Architecture(
        "llama4-scout",
        "llama4_text",
        {
            "num_hidden_layers": 48, "hidden_size": 5120, "vocab_size": 202048, "intermediate_size": 8192,
            "intermediate_size_mlp": 16384, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
            "num_local_experts": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
            "attention_chunk_size": 8192, "max_position_embeddings": 10485760,
        },
        "https://huggingface.co/meta-llama/Llama-4-Scout-17B-16E/blob/main/config.json",
    ),
    Architecture(
        "qwen3-30b-a3b",
        "qwen3_moe",
        {
            "num_hidden_layers": 48, "hidden_size": 2048, "vocab_size": 151936, "intermediate_size": 6144,
            "moe_intermediate_size": 768, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "max_position_embeddings": 40960,
        },
        "https://huggingface.co/Qwen/Qwen3-30B-A3B/blob/main/config.json",
    ),
    Architecture(
        "qwen3-235b-a22b",
        "qwen3_moe",
        {
            "num_hidden_layers": 94, "hidden_size": 4096, "vocab_size": 151936, "intermediate_size": 12288,
            "moe_intermediate_size": 1536, "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128,
            "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "max_position_embeddings": 40960,
        },
        "https://huggingface.co/Qwen/Qwen3-235B-A22B/blob/main/config.json",
    ),
    Architecture(
        "mixtral-8x22b",
        "mixtral",
        {
            "num_hidden_layers": 56, "hidden_size": 6144, "vocab_size": 32768, "intermediate_size": 16384,
            "num_attention_heads": 48, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
            "max_position_embeddings": 65536, "sliding_window": None,
        },
        "https://huggingface.co/mistralai/Mixtral-8x22B-v0.1/blob/main/config.json",
    ),
    Architecture(
        "gpt-oss-120b",
        "gpt_oss",
        {
            "num_hidden_layers": 36, "hidden_size": 2880, "vocab_size": 201088, "intermediate_size": 2880,
            "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 128,
            "num_experts_per_tok": 4, "sliding_window": 128,
        },
        "https://huggingface.co/openai/gpt-oss-120b/blob/main/config.json",
        HEAD_CUTS,
    ),
    Architecture(
        "kimi-k2",
        "deepseek_v3",
        {
            "num_hidden_layers": 61, "first_k_dense_replace": 1, "hidden_size": 7168, "vocab_size": 163840,
            "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_attention_heads": 64,
            "num_key_value_heads": 64, "n_routed_experts": 384, "n_shared_experts": 1, "num_experts_per_tok": 8,
            "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827, "q_lora_rank": 1536, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 131072,
        },
        "https://huggingface.co/moonshotai/Kimi-K2-Instruct/blob/main/config.json",
        MLA_CUTS,
    ),
    Architecture(
        "instella-moe-16b",
        "deepseek_v2",
        {**V2_LITE, "max_position_embeddings": 4096},
        "arXiv 2609.00791: 27 layers, the first one dense, hidden 2048, 64 routed experts, top 6, 2 shared, latent "
        "attention; what it does not say in the text that we have is as in DeepSeek-V2-Lite, of the same size; the "
        "gates of its attention are left out",
    ),
)  # fmt: skip


def architecture(name: str) -> Architecture:
    """The entry called `name`, or that of a folder with a `config.json`.

    Raises:
        ConfigError: neither.
    """
    known = {one.name: one for one in KNOWN}
    if name in known:
        return known[name]
    folder = Path(name)
    if (folder / "config.json").is_file():
        return Architecture(folder.resolve().name, "", {}, str(folder), folder=folder)
    raise ConfigError(
        f"no model is called {name!r}, and there is no folder of that name with a config.json",
        way_out=did_you_mean(name, known, always=f"one of {', '.join(known)}, or a folder with a config.json"),
    )
