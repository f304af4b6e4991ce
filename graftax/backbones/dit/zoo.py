"""Published checkpoints by name: the DiTs that grafting starts from and the 22 models of the grafting paper.

What each is, what was published of it and where to get it; weights are not shipped. Scores are those of the authors on
50,000 ImageNet samples (250 DDPM steps, guidance 1.5): DiT (arXiv 2212.09748, Table 3), grafting (arXiv 2506.05340,
Tables 2 and 4, and its repository's list of models).

The list is read without JAX: what needs the models' definitions imports them when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graftax.backbones.published import Scores, Zoo
from graftax.errors import BadInput
from graftax.spec import ModelSpec, OpSpec, op

DEPTH = 28
"""Blocks of a DiT-XL."""

SIZE = {256: (675_129_632, 237_301_563_392), 512: (676_014_368, 1_050_016_120_832)}
"""Resolution -> parameters of DiT-XL/2, its fixed table of positions included, and FLOPs of one pass on one image."""

MORE: dict[str, tuple[int, int]] = {
    "mha": (0, 0),
    "swa": (0, -293_396_480),
    "hyena_se": (23_040, -294_060_032),
    "hyena_x": (17_280, -296_419_328),
    "hyena_y": (5_760, -301_137_920),
    "mamba2": (2_977_840, 1_295_777_792),
    "mlp(ratio=3.0)": (-2_655_360, -1_358_954_496),
    "mlp(ratio=4.0)": (0, 0),
    "mlp(ratio=6.0)": (5_310_720, 2_717_908_992),
    "mlp_hyena_x": (3_584, 1_179_648),
}
"""Parameters and FLOPs that a block of DiT-XL/2 at 256 pixels has more with an operator: counted, for a list at once."""

_DIT = "DiT's licence, CC BY-NC, covers its code and weights: no commercial use"
_GRAFTED = (
    "made from DiT-XL/2, whose weights are CC BY-NC, so no commercial use; the Apache-2.0 licence of the grafting code does "
    "not change that"
)


@dataclass(frozen=True)
class Published:
    """One published DiT-XL/2: plain where `operator` is None, else grafted into `percent` percent of the blocks.

    `percent` 50 is every second block, 75 all but every fourth, 100 all. 100 with the operator that DiT has anyway is the
    paper's self-grafting: the spec is DiT's, the weights are new.
    """

    name: str
    scores: Scores
    operator: OpSpec | None = None
    percent: int = 0
    resolution: int = 256
    note: str = ""

    @property
    def slot(self) -> str:
        """Where the operator went, "mixer" or "mlp"; "" for a plain DiT."""
        if self.operator is None:
            return ""
        return "mlp" if self.operator.kind.startswith("mlp") else "mixer"

    @property
    def edit(self) -> str:
        """The edit that makes this model from DiT-XL/2, as `graftax graft --edit` takes it; "" for a plain DiT."""
        return f"blocks[{self.percent}%].{self.slot}={self.operator}" if self.operator else ""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks that hold the operator."""
        if self.operator is None:
            return ()
        every = {50: 2, 75: 4}.get(self.percent)
        return tuple(i for i in range(DEPTH) if every is None or i % every)

    def spec(self) -> ModelSpec:
        """What the model is."""
        from graftax.backbones.dit.variants import variant
        from graftax.surgery import parse

        spec = variant("DiT-XL/2", self.resolution)
        return parse(self.edit).on(spec) if self.operator else spec

    @property
    def params(self) -> int:
        """Number of parameters, the fixed position table included."""
        return self._size(0)

    @property
    def flops(self) -> int:
        """FLOPs of one forward pass on one image."""
        return self._size(1)

    def _size(self, which: int) -> int:
        plain = SIZE[self.resolution][which]
        if self.operator is None:
            return plain
        name = str(self.operator) if self.operator.kind == "mlp" else self.operator.kind
        return plain + len(self.blocks) * MORE[name][which]

    @property
    def page(self) -> str:
        """Where its authors present it."""
        return f"https://huggingface.co/grafting/{self.name}" if self.operator else "https://github.com/facebookresearch/DiT"

    @property
    def url(self) -> str:
        """Its weights, in PyTorch's format; `graftax.load` reads the file without further arguments."""
        if self.operator:
            return f"{self.page}/resolve/main/model.pt"
        return f"https://dl.fbaipublicfiles.com/DiT/models/{self.name}.pt"

    @property
    def licence(self) -> str:
        """What is known of the terms of its weights. Not legal advice: read the authors' pages."""
        return _GRAFTED if self.operator else _DIT


def check_published(path: Path, spec: ModelSpec) -> None:
    """Raise `BadInput` where a file has a published model's name, NAME/model.pt or DiT-XL-2-256x256.pt, but is another.

    One link in the grafting authors' list leads to another row's model; a file kept under the name it was meant to have
    would else pass for it.
    """
    entry = ZOO.get(path.absolute().parent.name if path.name == "model.pt" else path.stem)
    expected = entry.spec() if entry else spec
    if expected == spec:
        return
    for i, (block, its) in enumerate(zip(spec.blocks, expected.blocks, strict=False)):
        for slot, published in its.ops:
            if block[slot] != published:
                raise BadInput(
                    f"named as a published model that has {published} in blocks[{i}].{slot}, but holds {block[slot]}"
                )
    raise BadInput(
        f"named as a published model of {expected.depth} blocks, width {expected.width}, {expected.tokens} tokens, "
        f"but holds {spec.depth} blocks, width {spec.width}, {spec.tokens} tokens"
    )


def _grafted(label: str, operator: OpSpec, percent: int, *scores: float, suffix: str = "", note: str = "") -> Published:
    name = f"dit-xl2-{label}-{percent}p-fid{scores[0]:.2f}{suffix}"
    return Published(name, Scores(*scores), operator, percent, note=note)


def _ablation(label: str, operator: OpSpec, fid: float) -> Published:
    note = (
        "from an ablation of the fine-tuning budget (the paper's Figure 4 doubles the data to 20 %); data and steps of this "
        "file were not published"
    )
    return _grafted(label, operator, 50, fid, suffix="_ablation", note=note)


_SE, _X, _Y = (op(f"hyena_{name}", kernel=4) for name in ("se", "x", "y"))
_SWA = op("swa", window=4)
_MAMBA = op("mamba2", d_state=64, headdim=16, expand=2, d_conv=4)
_MLP_X = op("mlp_hyena_x", ratio=2.0, kernel=4)
_R3, _R4, _R6 = (op("mlp", ratio=ratio) for ratio in (3.0, 4.0, 6.0))

_ENTRIES = (
    Published("DiT-XL-2-256x256", Scores(2.27, 278.24, 4.60, 0.83, 0.57)),
    Published("DiT-XL-2-512x512", Scores(3.04, 240.82), resolution=512),
    # FID, Inception score, sFID, precision, recall
    _grafted("mha-mha", op("mha"), 100, 2.49, 287.81, 4.71, 0.83, 0.56, note="self-grafting; the paper says 2.53 once"),
    _grafted("mha-hyena_se", _SE, 50, 2.73, 274.73, 5.05, 0.82, 0.56),
    _ablation("mha-hyena_se", _SE, 2.61),
    _grafted(
        "mha-hyena_se", _SE, 75, 3.62, 231.15, 6.04, 0.81, 0.54,
        note="name inferred from the others: its link in the authors' list leads to hyena_se-50p-fid2.61_ablation",
    ),
    _grafted("mha-hyena_x", _X, 50, 2.74, 273.30, 5.03, 0.83, 0.56),
    _ablation("mha-hyena_x", _X, 2.58),
    _grafted("mha-hyena_x", _X, 75, 3.69, 229.11, 6.10, 0.81, 0.53),
    _grafted("mha-hyena_y", _Y, 50, 2.72, 273.37, 5.02, 0.83, 0.55),
    _ablation("mha-hyena_y", _Y, 2.61),
    _grafted("mha-hyena_y", _Y, 75, 3.66, 228.99, 5.95, 0.81, 0.53),
    _grafted("mha-swa", _SWA, 50, 2.67, 280.62, 4.90, 0.83, 0.56),
    _ablation("mha-swa", _SWA, 2.62),
    _grafted("mha-swa", _SWA, 75, 3.09, 249.99, 5.54, 0.82, 0.55),
    _grafted("mha-mamba_2", _MAMBA, 50, 2.65, 285.08, 4.84, 0.83, 0.55),
    _grafted("mha-mamba_2", _MAMBA, 75, 3.02, 257.66, 5.48, 0.82, 0.53),
    _grafted("mlp-mlp_r_4", _R4, 100, 2.54, 277.72, 4.52, 0.83, 0.57, note="self-grafting"),
    _grafted("mlp-mlp_r_3", _R3, 50, 2.53, 272.14, 4.51, 0.83, 0.57),
    _grafted("mlp-mlp_r_3", _R3, 75, 2.61, 279.72, 4.61, 0.83, 0.56),
    _grafted("mlp-mlp_r_6", _R6, 50, 2.38, 278.00, 4.50, 0.83, 0.58),
    _grafted("mlp-mlp_r_6", _R6, 75, 2.37, 277.94, 4.48, 0.82, 0.58),
    _grafted("mlp-hyena_x", _MLP_X, 50, 2.64, 265.60, 4.66, 0.83, 0.56, note="the paper says 2.63 once"),
    _grafted("mlp-hyena_x", _MLP_X, 75, 3.26, 226.13, 4.79, 0.81, 0.55),
)  # fmt: skip
ZOO = Zoo(_ENTRIES, "graftax.backbones.dit.variants", owner="grafting")
"""Every published model by its name: the folder on Hugging Face, for DiT the file's name without its suffix."""
