"""What grafting experiments share: one teacher, one judge, and a graft through both stages, scored after each."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from graftax.checkpoint.files import sha256_of_arrays
from graftax.cli import config as configs
from graftax.cli.experiments import stages, tasks
from graftax.cli.pixels import drawing
from graftax.cli.pixels import images as image_data
from graftax.cli.pixels.drawing import Score
from graftax.cli.schema import Denoising, DistillStage, GraftConfig, JudgedExperiment
from graftax.errors import BadInput
from graftax.evaluate import pictures
from graftax.evaluate.bench.timing import Timing, interleaved
from graftax.models import Model
from graftax.spec import ModelSpec
from graftax.surgery import Report

TIMED_BATCH, TIMED_ROUNDS = 32, 15
STAGES = ("without training", "after stage 1", "after stage 2")


@dataclass(frozen=True)
class Judged:
    """One model as an experiment sees it: samples (n, h, w, c) uint8, their score, its loss on held-out data."""

    title: str
    samples: np.ndarray
    score: Score
    loss: float


@dataclass(frozen=True)
class Branch:
    """One graft through both stages: what was edited, the judged models in the order of `STAGES`, the two records."""

    name: str
    report: Report
    judged: tuple[Judged, Judged, Judged]
    distilled: stages.History
    finetuned: stages.History


@dataclass
class Stopwatch:
    """Announces pieces of work and keeps how many seconds each took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def titled(self, title: str) -> Iterator[None]:
        """Print `title` with its number, time the block."""
        print(f"[{len(self.seconds) + 1}] {title}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[title] = time.perf_counter() - start


class Experiment:
    """Everything that all grafts of a config have in common; every model is judged by the same samples' noise and labels.

    `teacher` with its `teacher_hash`; `data`, with held-out images; the judge's score of these, `real`, and the width of
    its `features`; `clock` has timed what was done. Raises `BadInput` before any device work where teacher, data or one
    of `grafts` do not fit together; `what` names the experiment and, in `grafts`, a graft.
    """

    def __init__(self, config: JudgedExperiment, what: str, grafts: Mapping[str, GraftConfig]) -> None:
        self.config, self.clock = config, Stopwatch()
        with self.clock.titled("data and judge"):
            self.data = data = image_data.load(config.data)
            if not data.held_out or config.data.latents == "given":
                raise BadInput(f"data: the {what} wants images, some of them held out")
            self.teacher = stages.open_model(config.teacher, lambda spec: self._vet(spec, grafts))
            self.teacher_hash = sha256_of_arrays(self.teacher.params)
            self._decode = image_data.decoder(config.data.latents)
            self._judge = drawing.demo_judge(data.pixels(data.raw_train), config.classifier)
            self.real = self._judge.score(data.pixels(data.raw_test), data.test_labels)
            self.features = self._judge.spec.features

    def _vet(self, spec: ModelSpec, grafts: Mapping[str, GraftConfig]) -> None:
        image_data.check_fit(self.data, spec)
        for name, graft in grafts.items():
            try:
                stages.check_edit(graft, spec, lambda: self.data)
            except BadInput as error:
                raise BadInput(f"{name}: {error}") from None

    def judge(self, name: str, model: Model, title: str) -> Judged:
        """Draw samples of `model` and score them; say so."""
        config = self.config
        labels = drawing.balanced_labels(config.judged, self.data.num_classes)
        pixels = self._decode(drawing.draw(model, labels, config.sample, label="samples"))
        score = self._judge.score(pixels, labels)
        _, evaluate = tasks.denoising(config.finetune, model.spec, self.data)
        assert evaluate is not None
        loss = float(evaluate(model.params)["loss"])
        numbers = f"class accuracy {score.accuracy:.1%}, Fréchet {score.frechet:.3g}, held-out loss {loss:.4f}"
        print(f"    {name}, {title}: {numbers}", flush=True)
        return Judged(title, pictures.to_uint8(pixels), score, loss)

    def branch(
        self, name: str, student: Model, report: Report, work: Path, distill: DistillStage, finetune: Denoising,
        subsets: tuple[str | None, str | None] = (None, None),
    ) -> tuple[Branch, Model]:  # fmt: skip
        """Take a fresh graft through both stages, judged before, between and after; returns also the final model.

        `subsets`: the part of the training images that each stage sees. `work` keeps the trainings' checkpoints, so that
        the same call continues after an interruption.
        """
        titled, mesh = self.clock.titled, self.config.mesh
        data_1, data_2 = (image_data.reduced(self.data, subset) for subset in subsets)
        with titled(f"{name}: without training"):
            raw = self.judge(name, student, STAGES[0])
        with titled(f"{name}: stage 1, distillation"):
            student, distilled = stages.run_distill(self.teacher, student, distill, data_1, work / "distill", mesh)
            after_1 = self.judge(name, student, STAGES[1])
        with titled(f"{name}: stage 2, fine-tuning"):
            student, finetuned = stages.run_finetune(student, finetune, data_2, work / "finetune", mesh)
            after_2 = self.judge(name, student, STAGES[2])
        return Branch(name, report, (raw, after_1, after_2), distilled, finetuned), student

    def identity(self, *parts: Any) -> str:
        """Twelve hex digits that change with `parts` (config dataclasses, JSON types), the data or the teacher."""
        trees = [configs.as_tree(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
        text = json.dumps([*trees, configs.as_tree(self.config.data), self.teacher_hash], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def forward_times(models: Mapping[str, Model]) -> dict[str, Timing]:
    """Times of one pass over `TIMED_BATCH` images, models of equal input taking turns `TIMED_ROUNDS` times."""
    spec = next(iter(models.values())).spec
    x = jnp.ones((TIMED_BATCH, spec.input_size, spec.input_size, spec.in_channels))
    t, y = jnp.full(TIMED_BATCH, 500), jnp.zeros(TIMED_BATCH, jnp.int32)
    return interleaved({name: lambda m=m: m(x, t, y) for name, m in models.items()}, TIMED_ROUNDS)
