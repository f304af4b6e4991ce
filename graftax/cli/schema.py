"""What config files may say, as frozen dataclasses. Their defaults are the documentation of the defaults.

Three kinds of file: a `Training` from scratch (`graftax train`), chosen by its `task`; a `Recipe`, one grafting
experiment from teacher to fine-tuned student, of which `graftax graft`, `distill` and `finetune` each run their part; and
a `SweepConfig`, many such experiments in one table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from graftax.data.pipeline import TRANSFORMS
from graftax.data.source import FASHION_MNIST
from graftax.data.subset import check_subset
from graftax.diffusion import Process
from graftax.distill import DistillConfig
from graftax.errors import BadInput
from graftax.evaluate.classifier import ClassifierSpec
from graftax.models.autoencoder import AutoencoderSpec
from graftax.models.dit import dit_spec, variant
from graftax.models.stack import REMAT
from graftax.spec import ModelSpec
from graftax.train import LoopConfig, MeshConfig, OptimiserConfig
from graftax.train.loop_config import LoopOptions

DTYPES = ("float32", "bfloat16", "float16")
SAMPLERS = ("ddpm", "ddim")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and in what form the model gets them.

    `source`: "fashion_mnist" (embedded), an `.npz`, a folder with one sub-folder of images per class, "tfds:NAME#SPLIT" as
    tensorflow-datasets prepared it (as array_record, in `data_dir`; default TFDS_DATA_DIR), or a folder that `graftax
    encode` wrote. `test`: the held-out images' source, of the same kind; or `held_out`: the share of `source` kept for
    testing. `subset`: a stratified part of the training images by `subset_seed`, "8k", "10%" or "128 per class";
    `test_subset`: likewise of the held-out ones. `limit`: the first so many training images only.

    `size`: side of the images in pixels. Those in memory are centred on a square of it, others cropped as in ADM.
    `latents`: "none" for pixels, "given" where the source holds latents (a folder of `graftax encode`, or an `.npz` with
    `latents`), and for images in memory also "demo" or the folder of an autoencoder trained with `graftax train`.
    `transform`: "none", or "flip" for pixels and encoded folders.
    """

    source: str = FASHION_MNIST
    size: int = 32
    latents: str = "none"
    transform: str = "none"
    held_out: float = 0.0
    limit: int | None = None
    test: str | None = None
    subset: str | None = None
    test_subset: str | None = None
    subset_seed: int = 0
    data_dir: str | None = None

    def __post_init__(self) -> None:
        _choice("transform", self.transform, TRANSFORMS)
        _positive(self, "size", "limit")
        if self.transform == "flip" and self.latents not in ("none", "given"):
            raise BadInput(
                "transform: got 'flip' with latents, expected 'none': latents of a mirrored image are not mirrored"
            )
        for text in (self.subset, self.test_subset):
            if text is not None:
                check_subset(text)
        if self.subset_seed < 0:
            raise BadInput(f"subset_seed: got {self.subset_seed}, expected 0 or more")
        if self.test is not None and self.held_out:
            raise BadInput(f"held_out: got {self.held_out} beside test {self.test!r}, expected one of the two")
        if not 0 <= self.held_out < 1:
            raise BadInput(f"held_out: got {self.held_out}, expected a share in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a DiT from scratch: a published `variant` ("DiT-XL/2", at `resolution` pixels), or every size."""

    variant: str | None = None
    resolution: int = 256
    input_size: int | None = None
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    num_classes: int = 1000

    def spec(self) -> ModelSpec:
        """The `ModelSpec`. Raises `BadInput` where sizes are missing or do not fit together."""
        if self.variant is not None:
            return variant(self.variant, self.resolution, self.num_classes)
        sizes = {name: getattr(self, name) for name in ("input_size", "hidden_size", "depth", "num_heads")}
        if missing := [name for name, value in sizes.items() if value is None]:
            raise BadInput(f"model: neither variant nor {', '.join(missing)}; expected one or the other")
        return dit_spec(patch_size=self.patch_size, in_channels=self.in_channels, num_classes=self.num_classes, **sizes)


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How a network is trained, whatever it is. `frozen`: patterns of parameter paths that stay as they are.

    `accumulate`: gradients of so many equal pieces of a batch are averaged one after the other, for batches whose
    activations do not fit at once.
    """

    loop: LoopConfig
    batch_size: int = 128
    accumulate: int = 1
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    ema_decay: float = 0.999
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _positive(self, "batch_size", "accumulate")
        if self.batch_size % self.accumulate:
            raise BadInput(f"accumulate: {self.accumulate} does not divide batch_size {self.batch_size}")

    def check_mesh(self, mesh: MeshConfig, devices: int) -> None:
        """Raise `BadInput` where `mesh` does not fit `devices`, or the pieces of a batch do not divide over it."""
        mesh.check(devices, self.batch_size // self.accumulate)


@dataclass(frozen=True, kw_only=True)
class Denoising(Optimisation):
    """Training with the learned-variance diffusion objective; `plan` and `remat` as in `graftax.models.forward`.

    `preview`: how many samples every evaluation draws, classes in turn, for writers and workdir/images.
    """

    frozen: tuple[str, ...] = ("pos_embed",)
    class_dropout: float = 0.1
    compute_dtype: str = "float32"
    plan: str = "auto"
    remat: str = "none"
    preview: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preview < 0:
            raise BadInput(f"preview: got {self.preview}, expected 0 or more")
        _choice("compute_dtype", self.compute_dtype, DTYPES)
        _choice("remat", self.remat, tuple(REMAT))


# --- From scratch ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Training(Optimisation):
    """What every training from scratch has."""

    task: str
    workdir: str
    data: DataConfig = field(default_factory=DataConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


@dataclass(frozen=True, kw_only=True)
class DiTTraining(Denoising, Training):  # in this order: the defaults of `Denoising` win
    """A class-conditional DiT."""

    model: DiTConfig


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining(Training):
    """The small autoencoder that gives latents."""

    model: AutoencoderSpec = field(default_factory=AutoencoderSpec)


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining(Training):
    """The small classifier that scores samples."""

    model: ClassifierSpec = field(default_factory=ClassifierSpec)


TRAININGS: dict[str, type[Training]] = {
    "dit": DiTTraining,
    "autoencoder": AutoencoderTraining,
    "classifier": ClassifierTraining,
}


# --- A grafting experiment -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GraftConfig:
    """The edits, as on the command line: `replace` "blocks[1::2].mixer=hyena_x(kernel=4)", `resize` "blocks[*].mlp=3".

    `restructure`, after those, changes the depth: "parallel_pairs()", "drop(3, 5)" or "tie((1, 2), (7, 8))"
    (`graftax.surgery.restructure`); blocks have the numbers that the edits before leave them.
    `lora` puts adapters on kernels, last of all: "blocks[*].mixer=8" of rank 8 and alpha 16, "final=8,32" of alpha 32; a
    fine-tuning that freezes "(?!lora/).*" trains them alone (`graftax.surgery.lora`).
    `init`: "random" or "transplant" (`graftax.surgery.replace`); `seed` draws the scions. `calibration`: on how many batches
    of 64 training images neurons are weighed where transplanting makes an MLP narrower. Least squares belong to the
    next stage: `DistillConfig.calibration`.
    """

    replace: tuple[str, ...] = ()
    resize: tuple[str, ...] = ()
    restructure: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    init: str = "random"
    seed: int = 0
    calibration: int = 16

    def __post_init__(self) -> None:
        _positive(self, "calibration")


@dataclass(frozen=True, kw_only=True)
class DistillStage(LoopOptions):
    """Stage 1. `settings.steps` is its length."""

    settings: DistillConfig = field(default_factory=DistillConfig)
    batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "batch_size")
        _ = self.loop  # refuses a length that no loop can have

    @property
    def loop(self) -> LoopConfig:
        """The loop that runs all of `settings.steps`."""
        return LoopConfig(self.settings.steps, **{f.name: getattr(self, f.name) for f in fields(LoopOptions)})


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What every grafting experiment has beside its edits: `teacher` is a model's path, or "demo"."""

    workdir: str
    teacher: str
    distill: DistillStage
    finetune: Denoising
    data: DataConfig = field(default_factory=DataConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


@dataclass(frozen=True, kw_only=True)
class Recipe(Experiment):
    """One experiment: the teacher is edited, its scions distilled, the whole fine-tuned.

    Results go to `workdir`: grafted/, distilled/, finetuned/ hold models; distill/ and finetune/ metrics and checkpoints.
    `distill_subset`: the part of the training images that stage 1 sees, where it is not that of `data`.
    """

    graft: GraftConfig
    distill_subset: str | None = None

    def __post_init__(self) -> None:
        _ = self.distill_data

    @property
    def distill_data(self) -> DataConfig:
        """The data of stage 1."""
        return self.data if self.distill_subset is None else replace(self.data, subset=self.distill_subset)


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How samples are drawn. The same `seed` gives every model the same noise. Fields as in `graftax.sample`."""

    sampler: str = "ddim"
    steps: int = 50
    cfg_scale: float = 1.5
    cfg_channels: int | None = 3
    eta: float = 0.0
    seed: int = 0
    batch_size: int = 100

    def __post_init__(self) -> None:
        _choice("sampler", self.sampler, SAMPLERS)
        _positive(self, "batch_size")
        Process().respaced(self.steps)  # refuses impossible numbers of steps

    def __str__(self) -> str:
        guided = "all" if self.cfg_channels is None else f"the first {self.cfg_channels}"
        guidance = f"guidance {self.cfg_scale:g} on {guided} channels" if self.cfg_scale != 1 else "no guidance"
        return f"{self.sampler.upper()}, {self.steps} steps, {guidance}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class JudgedExperiment(Experiment):
    """How all models of an experiment are sampled and judged.

    `classifier`: the judge, shipped ("demo") or trained with `graftax train`. `judged`: samples per model, classes in turn.
    `shown`: rows of the grids, one image of each class per row.
    """

    sample: SampleConfig = field(default_factory=SampleConfig)
    classifier: str = "demo"
    judged: int = 500
    shown: int = 6

    def __post_init__(self) -> None:
        _positive(self, "judged", "shown")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(JudgedExperiment, Recipe):
    """The demo: the recipe, and the same recipe with the edit `graft_all`."""

    graft_all: GraftConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distill_subset is not None:
            raise BadInput(f"distill_subset: got {self.distill_subset!r}, expected none: the demo has one data set for all")


@dataclass(frozen=True, kw_only=True)
class Variant(GraftConfig):
    """One line of a sweep: a graft, and a `distill` or `finetune` of its own where the sweep's will not do.

    `distill_subset`, `finetune_subset`: the stratified part of the training images that a stage sees, "10%" (None: all).
    """

    distill: DistillStage | None = None
    finetune: Denoising | None = None
    distill_subset: str | None = None
    finetune_subset: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in (self.distill_subset, self.finetune_subset):
            if text is not None:
                check_subset(text)


@dataclass(frozen=True, kw_only=True)
class SweepConfig(JudgedExperiment):
    """Many grafts of one teacher under one budget: `variants` by name, in the order of the table
    (a `ConfigDict` sorts them, a plain dict does not).

    Each variant runs once per number in `seeds`, which is added to its seeds of graft, stage 1 and stage 2.
    """

    variants: dict[str, Variant]
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.variants:
            raise BadInput("variants: got none, expected one or more")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise BadInput(f"seeds: got {self.seeds}, expected different integers from 0, one or more")


@dataclass(frozen=True, kw_only=True)
class Start(GraftConfig):
    """One way to begin stage 1: a graft, then least squares for the last layers on so many batches (0: none)."""

    least_squares: int = 0


@dataclass(frozen=True, kw_only=True)
class InitsConfig(JudgedExperiment):
    """Ways to initialise scions, each through the same stage 1: `starts` by name, in the order of the table."""

    starts: dict[str, Start]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.starts:
            raise BadInput("starts: got none, expected one or more")
        if self.distill.settings.calibration:
            raise BadInput("distill.settings.calibration: expected 0, each of the starts has its own least_squares")


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BadInput(f"{name}: got {value!r}, expected one of {choices}")


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise BadInput(f"{name}: got {value}, expected 1 or more")
