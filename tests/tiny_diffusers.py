"""Pipelines of SD3, Flux and AuraFlow as diffusers builds them: small random networks and the tiny tokenizers' words."""

import pytest
from tiny_tokenizer import CLIP_VOCABULARY, END, MERGES, PIECES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

PROMPTS = ["a red cat!", " Two  Cats ", "a cat " * 40]
POSITIONS, WIDTH = 16, 60
"""Tokens that the CLIPs take, and width of the T5: more than that of both CLIPs."""


def random(model):
    """The model with weights of which none is without effect, nor so large that softmax magnifies rounding."""
    generator = torch.Generator().manual_seed(len(list(model.parameters())))
    with torch.no_grad():
        for weights in model.parameters():
            scale = 0.5 * weights[0].numel() ** -0.5 if weights.ndim > 1 else 0.3
            weights.copy_(torch.randn(weights.shape, generator=generator) * scale + (weights.ndim == 1))
    return model.eval()


# --- Text encoders ---------------------------------------------------------------------------------------------------------


def t5(kind="T5", width=WIDTH):
    sizes = {"vocab_size": 40, "d_model": width, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 3}
    config = getattr(transformers, f"{kind}Config")(**sizes, feed_forward_proj="gated-gelu")
    return random(getattr(transformers, f"{kind}EncoderModel")(config))


def clip(width, kind="CLIPTextModelWithProjection", **changes):
    config = transformers.CLIPTextConfig(
        vocab_size=len(CLIP_VOCABULARY), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=POSITIONS, projection_dim=width, **changes,
    )  # fmt: skip
    return random(getattr(transformers, kind)(config))


def words(**settings):
    return transformers.CLIPTokenizer(vocab=CLIP_VOCABULARY, merges=MERGES, model_max_length=POSITIONS, **settings)


def pieces():
    return transformers.T5Tokenizer(vocab=PIECES, extra_ids=0)


# --- Transformers and VAEs -------------------------------------------------------------------------------------------------


def sd3_transformer():
    return random(
        diffusers.SD3Transformer2DModel(
            sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=WIDTH,
            caption_projection_dim=16, pooled_projection_dim=44, pos_embed_max_size=12,
        )
    )  # fmt: skip


def flux_transformer(guidance):
    return random(
        diffusers.FluxTransformer2DModel(
            in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=WIDTH, pooled_projection_dim=20, guidance_embeds=guidance, axes_dims_rope=(4, 6, 6),
        )
    )  # fmt: skip


def aura_transformer():
    return random(
        diffusers.AuraFlowTransformer2DModel(
            sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=20, caption_projection_dim=16, pos_embed_max_size=64,
        )
    )  # fmt: skip


def vae(channels=16, **settings):
    """Two pixels a latent; the default settings are SD3's and Flux's, of 16 channels."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    own = {"use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305, "shift_factor": 0.0609}
    settings = {"block_out_channels": (8, 8), "norm_num_groups": 2, "mid_block_add_attention": False, **own, **settings}
    return diffusers.AutoencoderKL(latent_channels=channels, **blocks, **settings).eval()


# --- Pipelines -------------------------------------------------------------------------------------------------------------


def stable_diffusion_3(**changes):
    """The first CLIP's end is where its largest id is, the second one pads with another token."""
    parts = {
        "transformer": sd3_transformer(), "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "vae": None,
        "text_encoder": clip(20, eos_token_id=2), "tokenizer": words(),
        "text_encoder_2": clip(24, hidden_act="gelu", eos_token_id=CLIP_VOCABULARY[END]),
        "tokenizer_2": words(pad_token="!"), "text_encoder_3": t5(), "tokenizer_3": pieces(), **changes,
    }  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(**parts)


def flux(dynamic, **changes):
    """`dynamic`: dev's scheduler, else schnell's."""
    parts = {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic), "vae": None,
        "transformer": None, "text_encoder": clip(20, "CLIPTextModel", eos_token_id=2), "tokenizer": words(),
        "text_encoder_2": t5(), "tokenizer_2": pieces(), **changes,
    }  # fmt: skip
    return diffusers.FluxPipeline(**parts)


def aura_flow(**changes):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73)
    parts = {"tokenizer": pieces(), "text_encoder": t5("UMT5", 20), "vae": None, "transformer": None, **changes}
    return diffusers.AuraFlowPipeline(**parts, scheduler=scheduler)
