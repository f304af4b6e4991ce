"""DDT's files: the authors' checkpoints (MCG-NJU/DDT), as PyTorch Lightning writes them.

The averaged weights are read, and a projector of their training is not. All blocks stand in one list, and nothing in a file
says where the decoder's begin, or for which images it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from graftax.backbones.ddt.backbone import OWN
from graftax.backbones.ddt.variants import ENCODER_BLOCKS, PREDICTION
from graftax.backbones.dit.layouts import PREFIX, classes_of
from graftax.backbones.overrides import check_names
from graftax.backbones.state_dicts import Slots, block_keys, blocks_of, by_slot, check_operators, width_of
from graftax.blocks.ddt import KINDS
from graftax.errors import BadInput
from graftax.models.layout import Config, Key, Layout, Shapes
from graftax.ops.base import TorchKey, linear_keys
from graftax.spec import ModelSpec, Option, Sizes, sequential

T = TypeVar("T")

PATCH = 2
"""Side of a token in the latent image: all published models', and no tensor tells."""

PROJECTOR = "diffusion_trainer."
"""Before the names of the head of REPA's loss, with which DDTs are trained (`graftax.checkpoint.read_beside`)."""

INPUT_SIZE = 32
"""Side of the latent image of 256 pixels."""

STEM = (
    *linear_keys("x_embedder", "x_embedder.proj"),
    *linear_keys("s_embedder", "s_embedder.proj"),
    *linear_keys("t_embedder/fc1", "t_embedder.mlp.0"),
    *linear_keys("t_embedder/fc2", "t_embedder.mlp.2"),
    TorchKey("y_embedder/embedding", "y_embedder.embedding_table.weight", "same"),
    *linear_keys("final/adaln", "final_layer.adaLN_modulation.0"),
    *linear_keys("final/linear", "final_layer.linear"),
)

_AS_WIDE_AS_THE_MODEL = (
    "x_embedder.proj.bias", "s_embedder.proj.bias", "t_embedder.mlp.0.bias", "t_embedder.mlp.2.bias",
    "final_layer.linear.weight",
)  # fmt: skip

_NAMES = (
    (r"(blocks\.\d+)\.adaLN_modulation\.1\.", r"\1.adaLN_modulation.0."), (r"\.attn\.ln_([qk])\.", r".attn.\1_norm."),
    (r"\.mlp\.w2\.", ".mlp.w3."), (r"\.mlp\.out\.", ".mlp.w2."),
)  # fmt: skip
"""Our operators' names in blocks, and theirs, to be exchanged in this order; back in the other."""
_BACK = (
    (r"(blocks\.\d+)\.adaLN_modulation\.0\.", r"\1.adaLN_modulation.1."), (r"\.attn\.([qk])_norm\.", r".attn.ln_\1."),
    (r"\.mlp\.w2\.", ".mlp.out."), (r"\.mlp\.w3\.", ".mlp.w2."),
)  # fmt: skip


class DDTFile(Layout):
    """The authors' "state_dict", of which the averaged weights alone are read, or these by themselves; with grafted
    operators where a model has them."""

    name = "ddt"
    entry = "state_dict"
    prefix = "ema_denoiser."

    def parted(self, tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
        own, _ = super().parted(tensors)
        beside = {name: one for name, one in tensors.items() if name.startswith(PROJECTOR)}
        return {name: one for name, one in own.items() if name not in beside}, beside

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return not config and {"x_embedder.proj.weight", "s_embedder.proj.weight"} <= shapes.keys()

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        check_names(overrides, OWN)
        ours = {_exchanged(name, _BACK): shape for name, shape in shapes.items()}
        try:
            slots = by_slot(ours, PREFIX, [key.name for key in STEM], ("1.bias", "1.weight"))
            return self._spec(shapes, slots, overrides)
        except BadInput as error:
            raise BadInput(_exchanged(str(error), _NAMES)) from None

    def _spec(self, shapes: Shapes, slots: list[Slots], overrides: Mapping[str, Option]) -> ModelSpec:
        d, side = width_of(shapes, _AS_WIDE_AS_THE_MODEL), overrides.get("input_size", INPUT_SIZE)
        if not isinstance(side, int) or isinstance(side, bool) or side < 1 or side % PATCH:
            raise BadInput(f"override input_size={side!r}: expected a multiple of the patch {PATCH}")
        grid = (side // PATCH, side // PATCH)
        head_dim = _head_dim(shapes, d)
        sizes = Sizes(d, d // head_dim, head_dim, grid)
        encoder = _encoder_blocks(overrides, d, len(slots))
        blocks = blocks_of(KINDS[0], sizes, slots[:encoder], PREFIX, overrides)
        blocks += blocks_of(KINDS[1], sizes, slots[encoder:], PREFIX, overrides, encoder)
        frame = (("patch", PATCH), ("channels", _channels(shapes)), ("classes", classes_of(shapes)))
        spec = ModelSpec("ddt", sizes, frame, PREDICTION, blocks)
        check_operators(self, spec, shapes, PREFIX)
        return spec

    def keys(self, spec: ModelSpec) -> list[Key]:
        inner = (Key(key.leaf, (_exchanged(key.names[0], _NAMES),), key.turn) for key in block_keys(spec, PREFIX))
        return [*map(Key.of, STEM), *inner]

    def check(self, spec: ModelSpec) -> None:
        kinds = [block.kind for block in spec.blocks]
        if kinds != sorted(kinds, key=KINDS.index) or spec.program != sequential(spec.depth):
            raise BadInput("export: DDT files hold blocks 0..L-1 in order, the encoder's first; save a graftax folder")
        if spec.adapters:
            raise BadInput(f"export: DDT files hold no adapters, and this has {len(spec.adapters)}; merge_lora() first")
        if spec.option("patch") != PATCH:
            raise BadInput(f"export: patches of {spec.option('patch')}, but DDT files are read as of {PATCH}")


LAYOUTS: tuple[Layout, ...] = (DDTFile(),)


def _exchanged(text: str, names: tuple[tuple[str, str], ...]) -> str:
    for one, other in names:
        text = re.sub(one, other, text)
    return text


def _head_dim(shapes: Shapes, width: int) -> int:
    """Channels of a head, as the norm of some block's queries says."""
    name = next((name for name in shapes if name.endswith(".attn.q_norm.weight")), "blocks.0.attn.q_norm.weight")
    shape = shapes.get(name, ())
    if len(shape) != 1 or not shape[0] or width % shape[0] or shape[0] % 4:
        raise BadInput(f"{name} {shape}: expected (k,), k a multiple of 4 that divides {width}")
    return shape[0]


def _encoder_blocks(overrides: Mapping[str, Option], width: int, depth: int) -> int:
    """Blocks of the encoder: as the user says, else those of the paper's model of this width."""
    count = overrides.get("encoder_blocks", ENCODER_BLOCKS.get(width))
    if count is None:
        raise BadInput(f"encoder_blocks: not stored in tensors and width {width} is no published DDT's; give one")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count < depth:
        raise BadInput(f"encoder_blocks: got {count!r}, expected 1..{depth - 1} of the {depth} blocks")
    return count


def _channels(shapes: Shapes) -> int:
    weight, rows = shapes["s_embedder.proj.weight"], shapes["final_layer.linear.weight"][:1]
    if len(weight) != 2 or weight[1] % PATCH**2 or not weight[1] or rows != weight[1:]:
        raise BadInput(
            f"s_embedder.proj.weight {weight} and final_layer.linear.weight {shapes['final_layer.linear.weight']}: "
            f"expected (d, {PATCH**2} c) and ({PATCH**2} c, d)"
        )
    return weight[1] // PATCH**2
