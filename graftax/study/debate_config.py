"""What a config file says of a debate: models from scratch or grafts of one, claims about which of two is better, one budget
of FLOPs."""

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

Sizes = DiTConfig | LightningDiTConfig | DDTConfig
FAMILIES = ("dit", "lightningdit", "ddt")


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One model of a debate, and how its training differs from the others'. Raises `BadInput` where it is of two families.

    Attributes:
        dit: its sizes, if it is a DiT from scratch.
        lightningdit: likewise.
        ddt: likewise.
        edits: of its spec, before its first weights are drawn, or of the teacher (`graftax.surgery.config`).
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
        if len(given := self._given) > 1:
            raise BadInput(f"entrant: {len(given)} of {', '.join(FAMILIES)}, expected one")
        GraftConfig(edits=self.edits)

    @property
    def _given(self) -> list[Sizes]:
        return [sizes for name in FAMILIES if (sizes := getattr(self, name)) is not None]

    @property
    def sizes(self) -> Sizes | None:
        """Of a model from scratch; None of an edited teacher."""
        return next(iter(self._given), None)

    @property
    def graft(self) -> GraftConfig:
        """Its edits; a run's seed draws what they bring."""
        return GraftConfig(edits=self.edits)

    def spec(self, base: ModelSpec | None = None) -> ModelSpec:
        """Of the model, `base` the teacher's, None: as its sizes say. Raises `BadInput` where sizes or edits do not fit."""
        if base is None:
            assert self.sizes is not None, "asked for by DebateConfig"
            base = self.sizes.spec()
        return self.graft.edit.on(base) if self.edits else base

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
    """Small models, each trained on as many FLOPs as the first. Raises `BadInput` on claims about others, and where some
    entrants have sizes and some begin with the teacher's weights.

    Attributes:
        workdir: folder of its results.
        teacher: a model's path, "demo" or "scenes", that every entrant edits and trains on; "": all are from scratch.
        entrants: by name, in the order of the table; `training.loop.steps` are the first one's.
        claims: about them.
        training: of all, but for what an entrant has of its own.
        data: what they learn from.
        seeds: each is trained once per number, which is added to the training's seed.
        judging: of all models.
        flows: sampler of those that are flows.
        flow_steps: of that sampler; None: as many as the others'.
        mesh: devices.
        kind: "debate", which tells it from a sweep.
    """

    workdir: str
    entrants: dict[str, Entrant]
    claims: tuple[Disputed, ...]
    training: DiffusionConfig
    data: DataConfig = field(default_factory=DataConfig)
    teacher: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    judging: Judging = field(default_factory=Judging)
    flows: Sampler = "euler"
    flow_steps: int | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    kind: str = "debate"

    def __post_init__(self) -> None:
        if not self.entrants:
            raise BadInput("entrants: got none, expected one or more")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise BadInput(f"seeds: got {self.seeds}, expected different integers from 0, one or more")
        for name, entrant in self.entrants.items():
            if bool(self.teacher) == (entrant.sizes is not None):
                wanted = "edits alone, of the teacher" if self.teacher else f"sizes as one of {', '.join(FAMILIES)}"
                raise BadInput(f"entrants[{name!r}]: expected {wanted}")
        for claim in self.claims:
            for name in (claim.better, claim.than):
                if name not in self.entrants:
                    raise BadInput(f"claim {claim.text!r}: no entrant {name!r}{did_you_mean(name, self.entrants)}")
        self.sample(flow=True)

    def sample(self, flow: bool) -> SampleConfig:
        """How a model is drawn."""
        sample = self.judging.sample
        if not flow:
            return sample
        return replace(sample, sampler=self.flows, steps=sample.steps if self.flow_steps is None else self.flow_steps)
