"""DiT (Peebles and Xie, arXiv 2212.09748): published variants as specs."""

from __future__ import annotations

from graftax.backbones.dit.frame import COMPAT
from graftax.backbones.square import square
from graftax.blocks import resolve
from graftax.errors import BadInput, did_you_mean
from graftax.spec import ModelSpec, OpSpec, Prediction, op

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
"""Published sizes: depth, width, heads (DiT, Table 1)."""

PATCHES = (2, 4, 8)
RESOLUTIONS = (256, 512)
VARIANTS = tuple(f"DiT-{size}/{patch}" for size in SIZES for patch in PATCHES)
NORM_EPS = {"norm1": {"dit": 1e-6, "diffusers": 1e-6}, "norm2": {"dit": 1e-6, "diffusers": 1e-5}}
"""Slot -> `compat` -> eps of the norm there."""


def dit_spec(
    *, input_size: int, patch_size: int, hidden_size: int, depth: int, num_heads: int, in_channels: int = 4,
    num_classes: int = 1000, learn_sigma: bool = True, mixer: OpSpec | None = None, mlp: OpSpec | None = None,
    compat: str = "dit",
) -> ModelSpec:  # fmt: skip
    """Spec of a DiT with equal blocks: attention and a ratio-4 MLP unless given otherwise.

    `input_size` is the side of the (latent) image. Raises `BadInput` on sizes that do not go together.
    """
    made = square(
        input_size=input_size, patch_size=patch_size, hidden_size=hidden_size, num_heads=num_heads, depth=depth,
        in_channels=in_channels, num_classes=num_classes,
    )  # fmt: skip
    held = {**around(compat), "mixer": mixer or op("mha"), "mlp": mlp or op("mlp")}
    return ModelSpec(
        "dit", made,
        (("patch", patch_size), ("channels", in_channels), ("classes", num_classes), ("compat", compat)),
        Prediction(variance=learn_sigma), (resolve("dit", made, held),) * depth,
    )  # fmt: skip


def around(compat: str = "dit") -> dict[str, OpSpec]:
    """What a published DiT's block holds around its mixers, by slot."""
    if compat not in COMPAT:
        raise BadInput(f"compat: got {compat!r}, expected one of {COMPAT}")
    norms = {slot: op("layer_norm", affine=False, eps=eps[compat]) for slot, eps in NORM_EPS.items()}
    return {"adaln": op("adaln"), **norms}


def with_compat(spec: ModelSpec, compat: str) -> ModelSpec:
    """`spec` computed as DiT's own code ("dit") or as diffusers' ("diffusers") does: its times, and the eps of its norms."""
    norms = {slot: held for slot, held in around(compat).items() if slot in NORM_EPS}
    blocks = []
    for block in spec.blocks:
        for slot, norm in norms.items():
            if slot in block.slots and block[slot].kind == norm.kind:
                options = {**dict(block[slot].options), "eps": norm.option("eps")}
                block = block.with_op(slot, OpSpec(norm.kind, tuple(options.items())))
        blocks.append(block)
    return spec.with_frame(compat=compat).replace(blocks=tuple(blocks))


def variant(name: str, resolution: int = 256, num_classes: int = 1000) -> ModelSpec:
    """Spec of a published model by name, "DiT-XL/2" at 256 or 512 pixels (latents of resolution / 8).

    Raises `BadInput` on an unknown name or resolution.
    """
    if name not in VARIANTS:
        raise BadInput(f"variant: got {name!r}, expected DiT-{{S,B,L,XL}}/{{2,4,8}}{did_you_mean(name, VARIANTS)}")
    if resolution not in RESOLUTIONS:
        raise BadInput(f"resolution: got {resolution}, expected one of {RESOLUTIONS}")
    size, _, patch = name.removeprefix("DiT-").partition("/")
    depth, width, heads = SIZES[size]
    return dit_spec(
        input_size=resolution // 8, patch_size=int(patch), hidden_size=width, depth=depth, num_heads=heads,
        num_classes=num_classes,
    )  # fmt: skip
