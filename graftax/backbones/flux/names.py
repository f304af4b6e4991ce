"""What the tensors of a Flux are called: in the authors' file (black-forest-labs/flux, `model.py`), then in diffusers'
(FluxTransformer2DModel)."""

from __future__ import annotations

Names = tuple[str, ...]

STEM: dict[str, tuple[str, str]] = {
    "x_embedder": ("img_in", "x_embedder"),
    "text_embedder": ("txt_in", "context_embedder"),
    "t_embedder/fc1": ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    "t_embedder/fc2": ("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    "guidance_embedder/fc1": ("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    "guidance_embedder/fc2": ("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    "pooled_embedder/fc1": ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    "pooled_embedder/fc2": ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    "final/adaln": ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    "final/linear": ("final_layer.linear", "proj_out"),
}
"""Our linear layers outside the blocks, and what each format calls them."""

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
DOUBLE: dict[str, tuple[Names, Names]] = {
    "img/adaln": (("img_mod.lin",), ("norm1.linear",)),
    "txt/adaln": (("txt_mod.lin",), ("norm1_context.linear",)),
    "attn/img/qkv": (("img_attn.qkv",), QKV),
    "attn/txt/qkv": (("txt_attn.qkv",), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    "attn/img/proj": (("img_attn.proj",), ("attn.to_out.0",)),
    "attn/txt/proj": (("txt_attn.proj",), ("attn.to_add_out",)),
    "img/mlp/fc1": (("img_mlp.0",), ("ff.net.0.proj",)),
    "img/mlp/fc2": (("img_mlp.2",), ("ff.net.2",)),
    "txt/mlp/fc1": (("txt_mlp.0",), ("ff_context.net.0.proj",)),
    "txt/mlp/fc2": (("txt_mlp.2",), ("ff_context.net.2",)),
}
"""Likewise in a block of two streams: one tensor, or several to join."""

DOUBLE_SCALES = {
    "attn/img/q_norm": ("img_attn.norm.query_norm.scale", "attn.norm_q.weight"),
    "attn/img/k_norm": ("img_attn.norm.key_norm.scale", "attn.norm_k.weight"),
    "attn/txt/q_norm": ("txt_attn.norm.query_norm.scale", "attn.norm_added_q.weight"),
    "attn/txt/k_norm": ("txt_attn.norm.key_norm.scale", "attn.norm_added_k.weight"),
}
SINGLE_SCALES = {
    "mixer/q_norm": ("norm.query_norm.scale", "attn.norm_q.weight"),
    "mixer/k_norm": ("norm.key_norm.scale", "attn.norm_k.weight"),
}
