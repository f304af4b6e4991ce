"""How networks are trained, as config files and Python callers say it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from graftax.diffusion import Objective, Times
from graftax.errors import BadInput, did_you_mean
from graftax.models.network import fixed_paths
from graftax.models.stack import REMAT
from graftax.spec import ModelSpec
from graftax.train.loop_config import LoopConfig
from graftax.train.optimiser import OptimiserConfig
from graftax.train.recipes import Recipe
from graftax.train.sharding import MeshConfig

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained, whatever it is. Raises `BadInput` on values out of range.

    Attributes:
        loop: how long, and what is written when.
        batch_size: images per step, over all devices.
        accumulate: gradients of so many equal pieces of a batch are averaged one after the other, for batches whose
            activations do not fit at once.
        optimiser: AdamW and its schedule.
        ema_decay: of the averaged weights, which are the result.
        ema_warmup: whether that decay grows to its value, for runs from scratch: of 1,000 steps at 0.999 the average would
            still hold 37 % of the random weights that it starts from.
        frozen: patterns of the paths of parameters that stay as they are.
    """

    loop: LoopConfig
    batch_size: int = 128
    accumulate: int = 1
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    ema_decay: float = 0.999
    ema_warmup: bool = False
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.batch_size % self.accumulate:
            raise BadInput(f"accumulate: {self.accumulate} does not divide batch_size {self.batch_size}")

    @property
    def first_share(self) -> float:
        """What the averaged weights hold of the first ones at the end, 0 to 1; with `ema_warmup` next to nothing."""
        return 0.0 if self.ema_warmup else self.ema_decay**self.loop.steps

    def check_mesh(self, mesh: MeshConfig, devices: int) -> None:
        """Raise `BadInput` where `mesh` does not fit `devices`, or the pieces of a batch do not divide over it."""
        mesh.check(devices, self.batch_size // self.accumulate)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(TrainConfig):
    """Training with the model's own objective (`diffusion_loss`): stage 2, and pretraining.

    Attributes:
        class_dropout: share of images that are trained without their conditions.
        times: of the noise fraction, 0 data and 1 noise, at which images are trained (`graftax.diffusion.Times`): "uniform",
            "uniform(0.35, 0.8)", "logit_normal(0, 1)" as in SD3, "lognormal(-1.2, 1.2)" as in EDM, or "shifted(3)"; "": as
            such models are, "uniform", EDM's own.
        objective: what is made of the squared error (`graftax.diffusion.Objective`): "none", "min_snr(5)", "none +
            direction(1)".
        compute_dtype: matmul type.
        plan: as in `graftax.models.forward`.
        remat: likewise; "auto" keeps matmul results only on a CPU, where that is faster, and everything elsewhere.
        preview: how many samples every evaluation draws, classes in turn, for writers and workdir/images.
        recipe: what is done besides (`graftax.train.recipes.Recipe`): "tread(2, 24, 0.5) + repa(8)".
    """

    class_dropout: float = 0.1
    times: str = ""
    objective: str = "none"
    compute_dtype: str = "float32"
    plan: str = "auto"
    remat: str = "auto"
    preview: int = 0
    recipe: str = ""

    def frozen_in(self, spec: ModelSpec) -> tuple[str, ...]:
        """`frozen`, and what no training of such a model changes: a DiT's table of positions, a PixArt's null caption."""
        return tuple(dict.fromkeys((*fixed_paths(spec), *self.frozen)))

    @property
    def objectives(self) -> dict[str, Any]:
        """`times` and `objective` as `diffusion_loss` takes them."""
        return {"times": Times.parse(self.times) if self.times else None, "objective": Objective.parse(self.objective)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preview < 0:
            raise BadInput(f"preview: got {self.preview}, expected 0 or more")
        self.objectives  # refuses what is none  # noqa: B018
        Recipe.parse(self.recipe)
        for name, choices in {"compute_dtype": DTYPES, "remat": ("auto", *REMAT)}.items():
            if getattr(self, name) not in choices:
                near = did_you_mean(getattr(self, name), choices)
                raise BadInput(f"{name}: got {getattr(self, name)!r}, expected one of {choices}{near}")
