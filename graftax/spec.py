"""`ModelSpec`: what a model *is*, as one frozen, hashable value with a JSON form.

Only primitive fields, so a spec can be a static argument of `jax.jit`, a dictionary key and a line of JSON. It knows
operators, block kinds and backbones by name alone; `graftax.ops`, `graftax.blocks` and `graftax.backbones` give the names
their meaning. Every value is checked when it is made, so that two specs that mean the same are equal.
"""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from graftax.errors import BadInput, did_you_mean
from graftax.spec_checks import Option, Options, check_count, check_number, check_text, checked_options
from graftax.spec_prediction import Prediction, prediction_fields, prediction_of
from graftax.spec_version_1 import upgraded

K = TypeVar("K", bound=Hashable)

VERSION = 2
MERGES = ("mean", "sum", "project")

FAMILIES = ("dit", "pixart", "sd3", "flux", "auraflow", "lightningdit", "ddt", "maskdit")
BACKBONES = {name: f"graftax.backbones.{name}" for name in FAMILIES}
"""Backbones by name, and the module that is each. A module is imported when a model of its kind is first computed
(`graftax.models.backbone.find`). To add one: write its folder, name it here."""


@dataclass(frozen=True)
class OpSpec:
    """One operator: its registry name and its options.

    Attributes:
        kind: name in `graftax.ops.OPERATORS`.
        options: (name, value) pairs, sorted by name when the value is made. Raises `BadInput` on a name given twice and on
            values that are no number, bool or text, or not finite.
    """

    kind: str
    options: Options = ()

    def __post_init__(self) -> None:
        check_text(self.kind, "operator kind")
        object.__setattr__(self, "options", checked_options(self.options, f"operator {self.kind!r}"))

    def option(self, name: str, default: Option | None = None) -> Any:
        """Value of option `name`, or `default` where the spec leaves it to the operator."""
        return dict(self.options).get(name, default)

    def __str__(self) -> str:
        inside = ", ".join(f"{k}={v}" for k, v in self.options)
        return f"{self.kind}({inside})" if inside else self.kind


def op(kind: str, **options: Option) -> OpSpec:
    """`OpSpec` from keywords: `op("swa", window=4)`."""
    return OpSpec(kind, tuple(options.items()))


@dataclass(frozen=True)
class BlockSpec:
    """One transformer block.

    Attributes:
        kind: name in `graftax.blocks.BLOCKS` of the structure whose slots the operators fill.
        ops: (slot, operator) pairs in the order of the kind's slots. Raises `BadInput` on a slot given twice.
    """

    kind: str
    ops: tuple[tuple[str, OpSpec], ...]

    def __post_init__(self) -> None:
        check_text(self.kind, "block kind")
        for slot, held in self.ops:
            if not isinstance(held, OpSpec):
                raise BadInput(f"block {self.kind!r} slot {slot!r}: got {held!r}, expected an OpSpec")
        if len(dict(self.ops)) < len(self.ops):
            raise BadInput(f"block {self.kind!r}: slots {self.slots}, expected each once")

    def __getitem__(self, slot: str) -> OpSpec:
        """The operator in a slot; KeyError where there is no such slot."""
        return dict(self.ops)[slot]

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots."""
        return tuple(slot for slot, _ in self.ops)

    def with_op(self, slot: str, new: OpSpec) -> BlockSpec:
        """The same block with another operator in one slot; KeyError where there is no such slot."""
        self[slot]
        return BlockSpec(self.kind, tuple((name, new if name == slot else old) for name, old in self.ops))


@dataclass(frozen=True)
class Sizes:
    """What operators are built to. Raises `BadInput` on sizes that are no positive integers (`text`, `context`: 0 or more).

    Attributes:
        width: channels d of a token.
        heads: attention heads h.
        head_dim: channels k of a head.
        grid: rows and columns of image tokens.
        text: tokens m of the text stream, registers included; 0 where there is none.
        context: tokens m of the text that cross-attention reads and no block writes; 0 where there is none.
    """

    width: int
    heads: int
    head_dim: int
    grid: tuple[int, int]
    text: int = 0
    context: int = 0

    def __post_init__(self) -> None:
        for name, least in {"width": 1, "heads": 1, "head_dim": 1, "text": 0, "context": 0}.items():
            check_count(getattr(self, name), f"Sizes.{name}", least)
        if len(self.grid) != 2:
            raise BadInput(f"Sizes.grid: got {self.grid!r}, expected rows and columns")
        for side in self.grid:
            check_count(side, "Sizes.grid", least=0)
        object.__setattr__(self, "grid", tuple(self.grid))

    @property
    def image(self) -> int:
        """Image tokens n = rows x columns."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """All tokens of the streams, m + n."""
        return self.text + self.image


@dataclass(frozen=True)
class Step:
    """One step of a program.

    A single block runs as it is. Several blocks all read the same input x and their whole outputs f_i(x) (residual
    included) are merged: `mean` gives x + alpha * mean_i(f_i(x) - x), `sum` gives x + alpha * sum_i(f_i(x) - x),
    `project` gives x + alpha * (W [f_1(x), f_2(x), ...] + b - x) with a learned W (width of all outputs -> width). Streams
    are merged each by itself. Sources: "Transformer Layers as Painters" (arXiv 2407.09298), Figure 2, for the mean; the
    grafting paper's parallel blocks (arXiv 2506.05340) for the projection; alpha = 1 is both papers. Raises `BadInput` on
    values out of range.

    Attributes:
        blocks: numbers of the blocks.
        merge: "mean", "sum" or "project".
        loops: how often the step is repeated.
        alpha: factor of the change.
    """

    blocks: tuple[int, ...]
    merge: str = "mean"
    loops: int = 1
    alpha: float = 1.0

    def __post_init__(self) -> None:
        where = f"program step {self.blocks}"
        if not self.blocks:
            raise BadInput(f"{where}: expected block ids, at least one")
        for block in self.blocks:
            check_count(block, f"{where}: block id", least=0)
        if self.merge not in MERGES:
            raise BadInput(f"{where}: merge {self.merge!r}, expected one of {MERGES}")
        check_count(self.loops, f"{where}: loops")
        check_number(self.alpha, f"{where}: alpha")
        object.__setattr__(self, "blocks", tuple(map(operator.index, self.blocks)))


@dataclass(frozen=True)
class Adapter:
    """A low-rank adapter (LoRA) on a kernel: it acts as W + alpha / rank a b. Raises `BadInput` on values out of range.

    Attributes:
        path: the kernel's, "blocks/03/mixer/qkv/kernel".
        rank: r.
        alpha: factor of the change, over the rank.
    """

    path: str
    rank: int
    alpha: float

    def __post_init__(self) -> None:
        check_text(self.path, "adapter path")
        check_count(self.rank, f"adapter {self.path}: rank")
        check_number(self.alpha, f"adapter {self.path}: alpha")


def sequential(depth: int) -> tuple[Step, ...]:
    """The default program: blocks 0 .. depth-1 in order."""
    return tuple(Step((i,)) for i in range(depth))


@dataclass(frozen=True)
class ModelSpec:
    """A diffusion transformer. Raises `BadInput` where the fields contradict each other.

    Attributes:
        backbone: name in `BACKBONES`: what surrounds the blocks, embedders and output.
        sizes: width, heads and tokens.
        frame: the backbone's own options as sorted pairs, always with `patch` (side of a token in pixels of the model's
            images) and `channels` of these images; of a DiT also `classes` and `compat`.
        prediction: what output and time mean.
        blocks: every block with its operators.
        program: the order in which blocks run, as steps over their numbers; () is 0 .. depth-1.
        adapters: sorted by path, each path once.
        version: of this format, 2.
    """

    backbone: str
    sizes: Sizes
    frame: Options
    prediction: Prediction
    blocks: tuple[BlockSpec, ...]
    program: tuple[Step, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise BadInput(f"ModelSpec.version: got {self.version!r}, expected {VERSION}")
        if self.backbone not in BACKBONES:
            near = did_you_mean(self.backbone, BACKBONES)
            raise BadInput(f"ModelSpec.backbone: got {self.backbone!r}, expected one of {tuple(BACKBONES)}{near}")
        object.__setattr__(self, "frame", checked_options(self.frame, "ModelSpec.frame"))
        for name in ("patch", "channels"):
            check_count(self.option(name), f"ModelSpec.frame {name}")
        if not self.blocks:
            raise BadInput("ModelSpec.blocks: got none, expected at least one block")
        if not self.program:
            object.__setattr__(self, "program", sequential(len(self.blocks)))
        for step in self.program:
            if max(step.blocks) >= len(self.blocks):
                raise BadInput(f"program step {step.blocks}: expected block ids within 0..{len(self.blocks) - 1}")
        paths = [adapter.path for adapter in self.adapters]
        if paths != sorted(set(paths)):
            raise BadInput(f"ModelSpec.adapters: paths {paths}, expected them sorted, each once")

    def option(self, name: str, default: Option | None = None) -> Any:
        """Value of the frame's option `name`, or `default` where it has none."""
        return dict(self.frame).get(name, default)

    @property
    def width(self) -> int:
        """Channels d of a token."""
        return self.sizes.width

    @property
    def tokens(self) -> int:
        """Image tokens n."""
        return self.sizes.image

    @property
    def depth(self) -> int:
        """Number of blocks that have parameters (the program may run fewer or more)."""
        return len(self.blocks)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the images, or latents, that the model was made for."""
        (rows, columns), patch = self.sizes.grid, self.option("patch")
        return rows * patch, columns * patch, self.option("channels")

    @property
    def latent_channels(self) -> int:
        """Channels of the images that are latents or pixels, the first ones: all but the frame's `features`."""
        return self.option("channels") - self.option("features", 0)

    @property
    def out_channels(self) -> int:
        """Channels of the output layer: twice the input's when the variance is learned."""
        return self.option("channels") * (2 if self.prediction.network.variance else 1)

    @property
    def classes(self) -> int:
        """Number of classes that a class-conditional model knows, without the null class; 0 where there are none."""
        return self.option("classes", 0)

    @property
    def merges(self) -> tuple[tuple[int, ...], ...]:
        """Blocks of the steps that merge by a learned projection, in order, each tuple once: it has one projection."""
        return tuple(dict.fromkeys(step.blocks for step in self.program if step.merge == "project"))

    def block_key(self, index: int) -> str:
        """Key of a block in `params["blocks"]`: "07", or "007" where there are more than 100, so that keys sort in order."""
        return f"{index:0{max(2, len(str(self.depth - 1)))}d}"

    def merge_key(self, blocks: Iterable[int]) -> str:
        """Key of the projection that merges `blocks` in `params["merges"]`: "00_01"."""
        return "_".join(map(self.block_key, blocks))

    def replace(self, **changes: Any) -> ModelSpec:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def with_frame(self, **changes: Option) -> ModelSpec:
        """A copy with some options of the frame changed."""
        return self.replace(frame=tuple({**dict(self.frame), **changes}.items()))

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to an equal spec."""
        return json.dumps({**dataclasses.asdict(self), "prediction": prediction_fields(self.prediction)})

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Inverse of `to_json`; reads version 1 too. Raises `BadInput` on unknown, missing or ill-typed fields."""
        try:
            fields = json.loads(text)
            if "version" not in fields:
                fields = upgraded(fields)
            sizes, prediction = fields.pop("sizes"), fields.pop("prediction")
            return cls(
                sizes=Sizes(**{**sizes, "grid": tuple(sizes["grid"])}),
                frame=tuple((str(k), v) for k, v in fields.pop("frame")),
                prediction=prediction_of(prediction),
                blocks=tuple(
                    BlockSpec(b["kind"], tuple((slot, _op(held)) for slot, held in b["ops"])) for b in fields.pop("blocks")
                ),
                program=tuple(Step(**{**s, "blocks": tuple(s["blocks"])}) for s in fields.pop("program")),
                adapters=tuple(Adapter(**a) for a in fields.pop("adapters", ())),
                **fields,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"model spec: {error!r} while reading JSON {text[:80]!r}, expected ModelSpec fields") from None


def members(keys: Iterable[K]) -> dict[K, list[int]]:
    """Distinct keys in order of appearance, and the positions of each: [a, b, a] -> {a: [0, 2], b: [1]}."""
    found: dict[K, list[int]] = {}
    for position, key in enumerate(keys):
        found.setdefault(key, []).append(position)
    return found


def _op(fields: Mapping[str, Any]) -> OpSpec:
    return OpSpec(fields["kind"], tuple((str(k), v) for k, v in fields["options"]))


__all__ = [
    "BACKBONES", "MERGES", "VERSION", "Adapter", "BlockSpec", "ModelSpec", "OpSpec", "Option", "Options",
    "Prediction", "Sizes", "Step", "members", "op", "sequential",
]  # fmt: skip
