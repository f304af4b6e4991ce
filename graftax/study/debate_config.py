"""What a config file says of a debate: models from scratch, claims about which of two is better, one budget of FLOPs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from graftax.backbones.ddt.config import DDTConfig
from graftax.backbones.dit.config import DiTConfig
from graftax.backbones.lightningdit.config import LightningDiTConfig
from graftax.data.config import DataConfig
from graftax.diffusion.names import Sampler
from graftax.errors import BadInput, did_you_mean
from graftax.evaluate.drawing import SampleConfig
from graftax.spec import ModelSpec
from graftax.study.config import Judging
from graftax.surgery.config import GraftConfig
from graftax.train import DiffusionConfig, MeshConfig


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One model of a debate, and how its training differs from the others'. Raises `BadInput` unless it is of one family.

    Attributes:
        dit: its sizes, if it is a DiT.
        lightningdit: likewise.
        ddt: likewise.
        edits: of its spec, before its first weights are drawn (`graftax.surgery.config`).
        times: as in `DiffusionConfig`.
        objective: likewise.
        recipe: likewise.
    """

    dit: DiTConfig | None = None
    lightningdit: LightningDiTConfig | None = None
    ddt: DDTConfig | None = None
    edits: tuple[str, ...] = ()
    times: str = ""
    objective: str = "none"
    recipe: str = ""

    def __post_init__(self) -> None:
        if len(self._given) != 1:
            raise BadInput(f"entrant: {len(self._given)} of dit, lightningdit and ddt, expected one")
        GraftConfig(edits=self.edits)

    @property
    def _given(self) -> list[DiTConfig | LightningDiTConfig | DDTConfig]:
        return [one for one in (self.dit, self.lightningdit, self.ddt) if one is not None]

    def spec(self) -> ModelSpec:
        """Of the model. Raises `BadInput` where sizes or edits do not fit."""
        spec = self._given[0].spec()
        return GraftConfig(edits=self.edits).edit.on(spec) if self.edits else spec

    def trained(self, training: DiffusionConfig, steps: int, seed: int) -> DiffusionConfig:
        """`training` as this model has it: so many steps, in which a schedule ends, `seed` added to its own."""
        optimiser, loop = training.optimiser, training.loop
        if optimiser.decay_steps is not None:
            optimiser = replace(optimiser, decay_steps=max(steps, optimiser.warmup_steps + 1))
        return replace(
            training, loop=replace(loop, steps=steps, seed=loop.seed + seed), optimiser=optimiser, times=self.times,
            objective=self.objective, recipe=self.recipe,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Disputed:
    """A claim: one entrant draws better than another.

    Attributes:
        question: the letter that it belongs to.
        text: what is claimed.
        by: who said it.
        better: the entrant that is said to be ahead.
        than: the other one.
        note: what a reader must know beside; "" for nothing.
    """

    question: str
    text: str
    by: str
    better: str
    than: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class DebateConfig:
    """Small models from scratch, each on as many FLOPs as the first. Raises `BadInput` on claims about others.

    Attributes:
        workdir: folder of its results.
        entrants: by name, in the order of the table; `training.loop.steps` are the first one's.
        claims: about them.
        training: of all, but for what an entrant has of its own.
        data: what they learn from.
        seeds: each is trained once per number, which is added to the training's seed.
        judging: of all models; entrants that are flows are drawn by `flows`, in as many steps.
        flows: sampler of those.
        mesh: devices.
        kind: "debate", which tells it from a sweep.
    """

    workdir: str
    entrants: dict[str, Entrant]
    claims: tuple[Disputed, ...]
    training: DiffusionConfig
    data: DataConfig = field(default_factory=DataConfig)
    seeds: tuple[int, ...] = (0, 1, 2)
    judging: Judging = field(default_factory=Judging)
    flows: Sampler = "euler"
    mesh: MeshConfig = field(default_factory=MeshConfig)
    kind: str = "debate"

    def __post_init__(self) -> None:
        if not self.entrants:
            raise BadInput("entrants: got none, expected one or more")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise BadInput(f"seeds: got {self.seeds}, expected different integers from 0, one or more")
        for claim in self.claims:
            for name in (claim.better, claim.than):
                if name not in self.entrants:
                    raise BadInput(f"claim {claim.text!r}: no entrant {name!r}{did_you_mean(name, self.entrants)}")
        self.sample(flow=True)

    def sample(self, flow: bool) -> SampleConfig:
        """How a model is drawn."""
        return replace(self.judging.sample, sampler=self.flows) if flow else self.judging.sample
