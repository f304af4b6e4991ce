"""`ModelSpec`: what a model *is*, as one frozen, hashable value with a JSON form.

Only primitive fields, so a spec can be a static argument of `jax.jit`, a dictionary key and a line of JSON. It knows
operators by name alone; `graftax.ops` gives the names their meaning.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from graftax.errors import BadInput

Option = int | float | bool | str
SLOTS = ("mixer", "mlp")
MERGES = ("mean", "sum", "project")
COMPAT = ("dit", "diffusers")


@dataclass(frozen=True)
class OpSpec:
    """One operator: its registry name and its options as sorted (name, value) pairs."""

    kind: str
    options: tuple[tuple[str, Option], ...] = ()

    def option(self, name: str, default: Option | None = None) -> Any:
        """Value of option `name`, or `default` where the spec leaves it to the operator."""
        return dict(self.options).get(name, default)

    def __str__(self) -> str:
        inside = ", ".join(f"{k}={v}" for k, v in self.options)
        return f"{self.kind}({inside})" if inside else self.kind


def op(kind: str, **options: Option) -> OpSpec:
    """`OpSpec` from keywords: `op("swa", window=4)`."""
    return OpSpec(kind, tuple(sorted(options.items())))


@dataclass(frozen=True)
class BlockSpec:
    """One transformer block: a token mixer and a channel mixer, both gated by adaLN-zero."""

    mixer: OpSpec
    mlp: OpSpec


@dataclass(frozen=True)
class Step:
    """One step of a program.

    A single block runs as it is. Several blocks all read the same input x and their whole outputs f_i(x) (residual
    included) are merged: `mean` gives x + alpha * mean_i(f_i(x) - x), `sum` gives x + alpha * sum_i(f_i(x) - x),
    `project` gives x + alpha * (W [f_1(x), f_2(x), ...] + b - x) with a learned W (width of all outputs -> width). The
    step is repeated `loops` times. Sources: "Transformer Layers as Painters" (arXiv 2407.09298), Figure 2, for the mean;
    the grafting paper's parallel blocks (arXiv 2506.05340) for the projection; alpha = 1 is both papers.
    """

    blocks: tuple[int, ...]
    merge: str = "mean"
    loops: int = 1
    alpha: float = 1.0


@dataclass(frozen=True)
class Adapter:
    """A low-rank adapter (LoRA) on the kernel at `path`, "blocks/03/mixer/qkv/kernel": it acts as W + alpha / rank a b."""

    path: str
    rank: int
    alpha: float


def sequential(depth: int) -> tuple[Step, ...]:
    """The default program: blocks 0 .. depth-1 in order."""
    return tuple(Step((i,)) for i in range(depth))


@dataclass(frozen=True)
class ModelSpec:
    """A diffusion transformer: sizes, operators of every block, and the order in which blocks run.

    `input_size` is the side of the (latent) image in pixels of the model, `program` a tuple of `Step`s over block ids.
    `adapters` are sorted by path, each path once. `compat` "diffusers" computes as Hugging Face diffusers'
    DiTTransformer2DModel where that deviates from Facebook's DiT: timestep frequencies 10000^(-i / 127), and eps 1e-5 in
    the norm before the channel mixer. Raises `BadInput` where the fields contradict each other.
    """

    input_size: int
    patch_size: int
    in_channels: int
    hidden_size: int
    num_heads: int
    num_classes: int
    blocks: tuple[BlockSpec, ...]
    program: tuple[Step, ...] = ()
    learn_sigma: bool = True
    backbone: str = "dit"
    adapters: tuple[Adapter, ...] = ()
    compat: str = "dit"

    def __post_init__(self) -> None:
        if not self.program:
            object.__setattr__(self, "program", sequential(len(self.blocks)))
        self._check()

    def _check(self) -> None:
        for name in ("input_size", "patch_size", "in_channels", "hidden_size", "num_heads", "num_classes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"ModelSpec.{name}: got {value!r}, expected a positive integer")
        if self.input_size % self.patch_size:
            raise BadInput(f"ModelSpec.input_size {self.input_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_heads:
            raise BadInput(f"ModelSpec.hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if not self.blocks:
            raise BadInput("ModelSpec.blocks: got none, expected at least one block")
        for step in self.program:
            _check_step(step, len(self.blocks))
        if self.compat not in COMPAT:
            raise BadInput(f"ModelSpec.compat: got {self.compat!r}, expected one of {COMPAT}")
        _check_adapters(self.adapters)

    @property
    def depth(self) -> int:
        """Number of blocks that have parameters (the program may run fewer or more)."""
        return len(self.blocks)

    @property
    def tokens(self) -> int:
        """Tokens per image, n = (input_size / patch_size) ** 2."""
        return (self.input_size // self.patch_size) ** 2

    @property
    def merges(self) -> tuple[tuple[int, ...], ...]:
        """Blocks of the steps that merge by a learned projection, in order, each tuple once: it has one projection."""
        return tuple(dict.fromkeys(step.blocks for step in self.program if step.merge == "project"))

    @property
    def out_channels(self) -> int:
        """Channels of the output: twice the input's when the variance is learned."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    def replace(self, **changes: Any) -> ModelSpec:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to an equal spec."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Inverse of `to_json`. Raises `BadInput` on unknown, missing or ill-typed fields."""
        try:
            fields = json.loads(text)
            blocks = tuple(BlockSpec(_op(b["mixer"]), _op(b["mlp"])) for b in fields.pop("blocks"))
            program = tuple(Step(**{**s, "blocks": tuple(s["blocks"])}) for s in fields.pop("program"))
            adapters = tuple(Adapter(**a) for a in fields.pop("adapters", ()))
            return cls(blocks=blocks, program=program, adapters=adapters, **fields)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise BadInput(f"model spec: {error!r} while reading JSON {text[:80]!r}, expected ModelSpec fields") from None


def _op(fields: dict[str, Any]) -> OpSpec:
    return OpSpec(fields["kind"], tuple((str(k), v) for k, v in fields["options"]))


def _check_step(step: Step, depth: int) -> None:
    outside = [i for i in step.blocks if not 0 <= i < depth]
    if outside or not step.blocks:
        raise BadInput(f"program step {step.blocks}: expected block ids within 0..{depth - 1}, at least one")
    if step.merge not in MERGES:
        raise BadInput(f"program step {step.blocks}: merge {step.merge!r}, expected one of {MERGES}")
    if step.loops < 1:
        raise BadInput(f"program step {step.blocks}: loops {step.loops}, expected 1 or more")


def _check_adapters(adapters: tuple[Adapter, ...]) -> None:
    paths = [adapter.path for adapter in adapters]
    if paths != sorted(set(paths)):
        raise BadInput(f"ModelSpec.adapters: paths {paths}, expected them sorted, each once")
    for adapter in adapters:
        if not isinstance(adapter.rank, int) or adapter.rank < 1:
            raise BadInput(f"adapter {adapter.path}: rank {adapter.rank!r}, expected a positive integer")
        if not isinstance(adapter.alpha, int | float):
            raise BadInput(f"adapter {adapter.path}: alpha {adapter.alpha!r}, expected a number")


def block_key(index: int) -> str:
    """Key of block `index` in `params["blocks"]`: two digits, so that keys sort in order."""
    return f"{index:02d}"


def merge_key(blocks: tuple[int, ...]) -> str:
    """Key of the projection that merges `blocks` in `params["merges"]`: "00_01"."""
    return "_".join(map(block_key, blocks))
