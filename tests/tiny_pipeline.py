"""A pipeline of PixArt-Sigma as diffusers writes it: images of 16x16 pixels from latents of 8x8, T5 of three blocks."""

import json
import shutil
from pathlib import Path

import jax
from tiny_tokenizer import write_tokenizer

import graftax
from graftax.backbones.pixart import pixart_spec
from graftax.models import Model
from graftax.testing import random_params

T5 = Path(__file__).parent / "goldens" / "t5_v1_1"
SCALING = 0.13025
"""Of PixArt-Sigma's VAE, which is SDXL's."""


def pixart(**changes):
    """A PixArt of one block that reads the T5's embeddings."""
    sizes = {"input_size": 8, "patch_size": 2, "hidden_size": 32, "depth": 1, "num_heads": 2, "text_width": 20, **changes}
    spec = pixart_spec(**sizes)
    return Model(spec, random_params(spec, jax.random.key(0)))


def write_pipeline(root):
    """Path of the folder, written."""
    graftax.export(pixart(), root / "transformer")
    shutil.copytree(T5, root / "text_encoder", copy_function=shutil.copyfile)
    (root / "tokenizer").mkdir()
    write_tokenizer(root / "tokenizer")
    write_vae(root / "vae")
    parts = {"text_encoder": ["transformers", "T5EncoderModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (root / "model_index.json").write_text(json.dumps({"_class_name": "PixArtSigmaPipeline", **parts}))
    return root


def write_vae(folder):
    """A VAE of two pixels a latent."""
    import torch  # these take seconds, and every process collects the files that import this one
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=2, mid_block_add_attention=False, scaling_factor=SCALING, **blocks
    )
    vae.save_pretrained(folder)
