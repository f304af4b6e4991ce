"""How scions learn before a plan measures their harm: by stage 1 on data, or by least squares on noise."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftax import config
from graftax.data.pixels.images import Images, check_fit
from graftax.distill import DistillConfig, calibrate, distill
from graftax.distill.sites import scion_sites
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.backbone import find
from graftax.ops import operator_class
from graftax.spec import ModelSpec
from graftax.study import stages
from graftax.study.config import RECIPES as KINDS
from graftax.study.config import Recipe, experiment_of
from graftax.train.loop import Batch
from graftax.train.loop_config import LoopConfig

RECIPES = {"demo": "configs/demo_search.py", "scenes": "configs/scenes_graft.py"}
"""Data and stages of what grafts of the shipped models learn, where no config says so."""

PAPER = ("configs/grafting.py:hyena_x,50", "configs/pixart.py:hyena_x,1024")
"""Likewise of models of classes and of texts: the grafting paper's."""

NOISE_IMAGES, CALIBRATED = 32, 4
"""Where there is no data: images of a batch of noise, and on how many batches last layers are fitted."""


NOISE_STAGE = DistillConfig(steps=50, learning_rate=1e-3, schedule="cosine")
"""Likewise of operators without a single last layer."""


@dataclass(frozen=True, eq=False)
class Teaching:
    """How scions learn before their harm is measured, and on what it is measured.

    Attributes:
        heldout: image (n, h, w, c) and what goes with it.
        batches: a new stream of batches, which can begin anew: calibration may look at its first ones twice.
        teach: (teacher, student, name) -> the student with taught scions.
        described: in words.
    """

    heldout: Batch
    batches: Callable[[], Iterable[Batch]]
    teach: Callable[[Model, Model, str], Model]
    described: str


@dataclass(frozen=True)
class Noise:
    """Batches of noise in place of images without end, the same ones whenever it is begun.

    Attributes:
        spec: of the model that they are for; under any classes, or texts of zeros.
        images: in a batch.
        seed: of the noise.
    """

    spec: ModelSpec
    images: int
    seed: int

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """One of them: image (images, h, w, c), and label (images,) or what else the model is conditioned on."""
        rng = np.random.default_rng([self.seed, number])
        noise = rng.standard_normal((self.images, *self.spec.image_shape), np.float32)
        if self.spec.classes:
            return {"image": noise, "label": rng.integers(0, self.spec.classes, self.images).astype(np.int32)}
        example = find(self.spec).example(self.spec, self.images)
        return {"image": noise, **{name: np.asarray(value) for name, value in example.items()}}

    def __iter__(self) -> Iterator[Batch]:
        """Batches 1, 2, ..: 0 is left to measure on."""
        return map(self.batch, itertools.count(1))


def from_noise(spec: ModelSpec, images: int = NOISE_IMAGES, seed: int = 0) -> Teaching:
    """Where there are only weights: last layers are fitted by least squares on noise in place of images (any classes, texts
    of zeros), and harm is measured on noise."""

    noise = Noise(spec, images, seed)

    def teach(teacher: Model, student: Model, name: str) -> Model:
        held = {site.held(student.spec).kind for site in scion_sites(student, None)}
        if all(operator_class(kind).readout for kind in held):
            return calibrate(teacher, student, noise, CALIBRATED, batch_size=images, show=False)
        return distill(teacher, student, noise, NOISE_STAGE, LoopConfig(NOISE_STAGE.steps), show=False)[0]

    about = (
        f"fitted by least squares on noise, {CALIBRATED} batches of {images} (joint operators: {NOISE_STAGE.steps} steps of "
        f"stage 1 on it); harm on {images} others"
    )
    return Teaching(noise.batch(0), lambda: noise, teach, about)


def from_recipe(recipe: Recipe, data: Images, images: int = 512, work: Path | None = None) -> Teaching:
    """Where there is data: stage 1 of a recipe for every operator, harm on held-out images. `work` keeps the checkpoints, so
    that the same call continues. Raises `BadInput` where no images are held out."""
    heldout = {name: array[:images] for name, array in (stages.heldout_of(data) or {}).items()}
    if not heldout or not len(heldout["image"]):
        raise BadInput(
            f"plan: {images} held-out images asked for of data that has none, expected data.held_out or a test set"
        )

    def teach(teacher: Model, student: Model, name: str) -> Model:
        folder = None if work is None else work / "".join(c if c.isalnum() else "-" for c in name)
        return stages.run_distill(teacher, student, recipe.distill, data, folder, recipe.mesh)[0]

    stage = recipe.distill
    about = (
        f"{stage.settings.steps} steps of stage 1 in batches of {stage.batch_size}; harm on {len(heldout['image'])} held-out"
    )
    return Teaching(heldout, lambda: data.batches(stage.batch_size, stage.seed), teach, f"{about} images")


def teaching_of(
    spec: ModelSpec, recipe: Recipe | None, data: Images | None, images: int, work: Path | None = None
) -> Teaching:
    """`from_recipe` where there are a recipe and its data, else `from_noise`. Raises `BadInput` on `images` below 1."""
    if images < 1:
        raise BadInput(f"images: got {images}, expected 1 or more")
    if recipe is None or data is None:
        return from_noise(spec, min(images, NOISE_IMAGES))
    check_fit(data, spec)
    return from_recipe(recipe, data, images, work)


def recipe_of(name: str, spec: ModelSpec, given: Recipe | None = None) -> Recipe:
    """The stages that grafts of a model go through: those `given`, else the demo's or the paper's."""
    if given is None:
        usual: Recipe = experiment_of(config.read(RECIPES.get(name, PAPER[not spec.classes])), *KINDS)
        given = dataclasses.replace(usual, teacher=name)
    shared: dict[str, Any] = {field.name: getattr(given, field.name) for field in dataclasses.fields(Recipe)}
    return Recipe(**{**shared, "kind": "recipe"})
