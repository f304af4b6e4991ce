"""What config files of experiments say. The defaults here are the documentation of the defaults.

An experiment takes one teacher; its `kind` says what is done with it: a `Recipe` grafts it, teaches the scions and
fine-tunes the whole, of which `graftax graft`, `distill` and `finetune` each run their part; a `DemoConfig` does so with
several grafts; a `SweepConfig` compares many grafts in one table, an `InitsConfig` ways to start them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from graftax.config import build, convert
from graftax.data.config import DataConfig
from graftax.data.subset import check_subset
from graftax.distill.stage import DistillStage
from graftax.errors import BadInput, did_you_mean
from graftax.evaluate.drawing import SampleConfig
from graftax.surgery.config import GraftConfig
from graftax.train import DiffusionConfig, MeshConfig

ADAPTERS_ALONE = "(?!lora/).*"
"""What is frozen where adapters alone are trained: every path that does not lead to one."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """What every grafting experiment has beside its edits.

    Attributes:
        workdir: folder of its results.
        teacher: a model's path, "demo" or "scenes".
        distill: stage 1.
        finetune: stage 2.
        data: what both learn from.
        mesh: devices.
        kind: which of `EXPERIMENTS` this is.
    """

    workdir: str
    teacher: str
    distill: DistillStage
    finetune: DiffusionConfig
    data: DataConfig = field(default_factory=DataConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    kind: str = "recipe"


@dataclass(frozen=True, kw_only=True)
class Recipe(ExperimentConfig):
    """One experiment: the teacher is edited, its scions distilled, the whole fine-tuned.

    Results go to `workdir`: grafted/, distilled/, finetuned/ hold models; distill/ and finetune/ metrics and checkpoints.

    Attributes:
        graft: the edits.
        distill_subset: the part of the training images that stage 1 sees, where it is not that of `data`.
    """

    graft: GraftConfig
    distill_subset: str | None = None

    @property
    def distill_data(self) -> DataConfig:
        """The data of stage 1."""
        return self.data if self.distill_subset is None else replace(self.data, subset=self.distill_subset)

    def __post_init__(self) -> None:
        if self.distill_subset is not None:
            check_subset(self.distill_subset)


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How models are sampled and judged. Raises `BadInput` on values out of range.

    Attributes:
        sample: how samples are drawn.
        classifier: the judge of images of classes, shipped ("demo") or trained with `graftax train`.
        judged: samples per model, classes in turn, or the six categories of captions of scenes.
        shown: rows of the grids, one image of each class or category per row.
    """

    sample: SampleConfig = field(default_factory=SampleConfig)
    classifier: str = "demo"
    judged: int = 500
    shown: int = 6

    def __post_init__(self) -> None:
        for name in ("judged", "shown"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}: got {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class Adaptation(GraftConfig):
    """A stage 2 of adapters alone, of the model that stage 1 leaves. Raises `BadInput` where anything else is trained.

    Attributes:
        finetune: how the adapters that the edits put on are trained.
        grafts: so many of the grafts go through it, the first ones; None for all.
    """

    finetune: DiffusionConfig
    grafts: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grafts is not None and self.grafts < 1:
            raise BadInput(f"adaptation.grafts: got {self.grafts}, expected 1 or more, or None for all")
        if ADAPTERS_ALONE not in self.finetune.frozen:
            raise BadInput(f"finetune.frozen: got {self.finetune.frozen}, expected {ADAPTERS_ALONE!r} among them")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Recipe):
    """The demo: the recipe, and the same recipe with other grafts.

    Attributes:
        others: the other grafts.
        adaptation: a second way through stage 2, None for none.
        judging: of all models.
    """

    others: tuple[GraftConfig, ...]
    adaptation: Adaptation | None = None
    judging: Judging = field(default_factory=Judging)

    @property
    def grafts(self) -> tuple[GraftConfig, ...]:
        """All of them, the recipe's own first."""
        return (self.graft, *self.others)

    def __post_init__(self) -> None:
        if self.distill_subset is not None:
            raise BadInput(f"distill_subset: got {self.distill_subset!r}, expected none: the demo has one data set for all")


@dataclass(frozen=True, kw_only=True)
class Variant(GraftConfig):
    """One line of a sweep: a graft, and stages of its own where the sweep's will not do.

    Attributes:
        distill: stage 1, None for the sweep's.
        finetune: stage 2, likewise.
        distill_subset: the stratified part of the training images that stage 1 sees, "10%" (None: all).
        finetune_subset: likewise of stage 2.
    """

    distill: DistillStage | None = None
    finetune: DiffusionConfig | None = None
    distill_subset: str | None = None
    finetune_subset: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in (self.distill_subset, self.finetune_subset):
            if text is not None:
                check_subset(text)


@dataclass(frozen=True, kw_only=True)
class SweepConfig(ExperimentConfig):
    """Many grafts of one teacher under one budget.

    Attributes:
        variants: by name, in the order of the table (a `ConfigDict` sorts them, a plain dict does not).
        seeds: each variant runs once per number, which is added to its seeds of graft, stage 1 and stage 2.
        judging: of all models.
    """

    variants: dict[str, Variant]
    seeds: tuple[int, ...] = (0,)
    judging: Judging = field(default_factory=Judging)

    def __post_init__(self) -> None:
        if not self.variants:
            raise BadInput("variants: got none, expected one or more")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise BadInput(f"seeds: got {self.seeds}, expected different integers from 0, one or more")


@dataclass(frozen=True, kw_only=True)
class Start(GraftConfig):
    """One way to begin stage 1.

    Attributes:
        least_squares: on how many batches last layers are fitted first, 0 for not at all.
    """

    least_squares: int = 0


@dataclass(frozen=True, kw_only=True)
class InitsConfig(ExperimentConfig):
    """Ways to initialise scions, each through the same stage 1.

    Attributes:
        starts: by name, in the order of the table.
        judging: of all models.
    """

    starts: dict[str, Start]
    judging: Judging = field(default_factory=Judging)

    def __post_init__(self) -> None:
        if not self.starts:
            raise BadInput("starts: got none, expected one or more")
        if self.distill.settings.calibration:
            raise BadInput("distill.settings.calibration: expected 0, each of the starts has its own least_squares")


EXPERIMENTS: dict[str, type[ExperimentConfig]] = {
    "recipe": Recipe, "demo": DemoConfig, "sweep": SweepConfig, "inits": InitsConfig,
}  # fmt: skip
RECIPES = ("recipe", "demo")
"""Kinds that have a graft and both stages."""


def experiment_of(tree: dict[str, Any], *kinds: str) -> Any:
    """The experiment that a config file's fields describe, one of `kinds`. Raises `BadInput`, naming the key."""
    kind = convert(str, tree.get("kind", "recipe"), "config.kind")
    if kind not in kinds:
        raise BadInput(f"config.kind: got {kind!r}, expected {' or '.join(kinds)}{did_you_mean(kind, kinds)}")
    return build(EXPERIMENTS[kind], tree)
