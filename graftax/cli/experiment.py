"""The demo's experiment: a teacher, two grafts of it, each judged after every stage. Results as plain values."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from graftax import api
from graftax.cli import config as configs
from graftax.cli import drawing, stages, tasks
from graftax.cli import images as image_data
from graftax.cli.drawing import Score
from graftax.cli.schema import DemoConfig, GraftConfig
from graftax.errors import BadInput
from graftax.evaluate import pictures
from graftax.evaluate.bench.timing import interleaved
from graftax.models import Meta, Model
from graftax.spec import ModelSpec
from graftax.surgery import Report

TIMED_BATCH, TIMED_ROUNDS = 32, 15


@dataclass(frozen=True)
class Judged:
    """One model as the demo sees it: samples (n, h, w, c) uint8, their score, its loss on held-out data."""

    title: str
    samples: np.ndarray
    score: Score
    loss: float


@dataclass(frozen=True)
class Branch:
    """One graft through both stages: what was edited, the three judged models, the records of the two trainings."""

    name: str
    report: Report
    judged: tuple[Judged, Judged, Judged]
    distilled: stages.History
    finetuned: stages.History


@dataclass(frozen=True)
class Findings:
    """All that the page shows.

    `forward`: median seconds of one pass over `TIMED_BATCH` images, by model name. `real`: the score of held-out real
    images; `real_counts`: how many real images are the reference, and how many were held out. `features`: the width of
    the judge's features. `seconds`: by stage title.
    """

    config: DemoConfig
    teacher: Judged
    teacher_meta: Meta
    teacher_hash: str
    half: Branch
    all: Branch
    real: Score
    forward: dict[str, float]
    real_counts: tuple[int, int]
    features: int
    class_names: tuple[str, ...]
    seconds: dict[str, float]


@dataclass
class Experiment:
    """Runs the demo of `config`; `folder` keeps finished stages, so that running again continues."""

    config: DemoConfig
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> Findings:
        """The whole experiment. Raises `BadInput` before any device work where the config does not fit the teacher."""
        config = self.config
        with self._titled("data and judge"):
            self._read()
            teacher = stages.open_model(config.teacher, self._vet)
            self._teacher_hash = stages.fingerprint(teacher)
            self._set_up_judge()
        with self._titled("teacher"):
            judged = self._judge("teacher", teacher, "teacher")
        grafts = [stages.run_graft(teacher, graft) for graft in (config.graft, config.graft_all)]
        if len({len(report.sites) for _, report in grafts}) < 2:
            raise BadInput("demo: graft and graft_all exchange equally many operators, expected different numbers")
        half, half_model = self._branch(teacher, config.graft, *grafts[0])
        every, every_model = self._branch(teacher, config.graft_all, *grafts[1])
        with self._titled("forward times, interleaved"):
            forward = _forward_times({"teacher": teacher, half.name: half_model, every.name: every_model})
        counts = (len(self._data.raw_train), len(self._data.raw_test))
        return Findings(
            config, judged, teacher.meta, self._teacher_hash, half, every, self._real_score, forward, counts,
            self._judge_net.spec.features, self._data.raw_train.class_names, self.seconds,
        )  # fmt: skip

    def _vet(self, spec: ModelSpec) -> None:
        image_data.check_fit(self._data, spec)
        stages.check_edit(self.config.graft, spec)
        stages.check_edit(self.config.graft_all, spec)

    def _read(self) -> None:
        self._data = data = image_data.load(self.config.data)
        if not data.held_out or self.config.data.latents == "given":
            raise BadInput("data: the demo wants images, some of them held out")

    def _set_up_judge(self) -> None:
        data = self._data
        self._decode = image_data.decoder(self.config.data.latents)
        self._judge_net = drawing.demo_judge(data.pixels(data.raw_train), self.config.classifier)
        self._real_score = self._judge_net.score(data.pixels(data.raw_test), data.test_labels)

    def _branch(self, teacher: Model, graft: GraftConfig, student: Model, report: Report) -> tuple[Branch, Model]:
        name = f"{len(report.sites) / teacher.spec.depth:.0%}".replace("%", " %") + " grafted"
        work = self.folder / "work" / self._identity(graft)
        with self._titled(f"{name}: without training"):
            raw = self._judge(name, student, "without training")
        with self._titled(f"{name}: stage 1, distillation"):
            student, distilled = stages.run_distill(
                teacher, student, self.config.distill, self._data, work / "distill", self.config.mesh
            )
            after_1 = self._judge(name, student, "after stage 1")
        with self._titled(f"{name}: stage 2, fine-tuning"):
            student, finetuned = stages.run_finetune(
                student, self.config.finetune, self._data, work / "finetune", self.config.mesh
            )
            after_2 = self._judge(name, student, "after stage 2")
        api.save(student, self.folder / f"{len(report.sites)}-of-{teacher.spec.depth}")
        return Branch(name, report, (raw, after_1, after_2), distilled, finetuned), student

    def _judge(self, name: str, model: Model, title: str) -> Judged:
        config = self.config
        labels = drawing.balanced_labels(config.judged, self._data.num_classes)
        pixels = self._decode(drawing.draw(model, labels, config.sample, label="samples"))
        score = self._judge_net.score(pixels, labels)
        _, evaluate = tasks.denoising(config.finetune, model.spec, self._data)
        assert evaluate is not None
        loss = float(evaluate(model.params)["loss"])
        numbers = f"class accuracy {score.accuracy:.1%}, Fréchet {score.frechet:.3g}, held-out loss {loss:.4f}"
        print(f"    {name}, {title}: {numbers}", flush=True)
        return Judged(title, pictures.to_uint8(pixels), score, loss)

    def _identity(self, graft: GraftConfig) -> str:
        """Names the folder of a branch's trainings: another config or teacher never meets its checkpoints."""
        config = configs.as_tree(self.config)
        parts = [configs.as_tree(graft), *(config[key] for key in ("distill", "finetune", "data"))]
        text = json.dumps([*parts, self._teacher_hash], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @contextmanager
    def _titled(self, title: str) -> Iterator[None]:
        print(f"[{len(self.seconds) + 1}] {title}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[title] = time.perf_counter() - start


def _forward_times(models: dict[str, Model]) -> dict[str, float]:
    spec = models["teacher"].spec
    x = jnp.ones((TIMED_BATCH, spec.input_size, spec.input_size, spec.in_channels))
    t, y = jnp.full(TIMED_BATCH, 500), jnp.zeros(TIMED_BATCH, jnp.int32)
    timings = interleaved({name: lambda m=m: m(x, t, y) for name, m in models.items()}, TIMED_ROUNDS)
    return {name: timing.median for name, timing in timings.items()}
