"""What grafting experiments share: one teacher, one judge, and a graft through both stages, scored after each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graftax import config as configs
from graftax.checkpoint.files import sha256_of_arrays
from graftax.data.pixels import images as image_data
from graftax.distill.stage import DistillStage
from graftax.errors import BadInput
from graftax.evaluate import pictures
from graftax.evaluate.bench.timing import Timing, interleaved
from graftax.evaluate.roofline import inputs_of
from graftax.evaluate.score import Score
from graftax.models import Model
from graftax.ops.base import Params
from graftax.progress import say
from graftax.spec import ModelSpec
from graftax.study import examiners, stages
from graftax.study.config import Adaptation, ExperimentConfig, Judging
from graftax.study.examiners import Examiner
from graftax.study.missing import require_model
from graftax.surgery import Report, graft, merge_lora
from graftax.surgery.config import GraftConfig
from graftax.train import DiffusionConfig, heldout_loss

TIMED_BATCH, TIMED_ROUNDS = 32, 15
STAGES = ("without training", "after stage 1", "after stage 2")
ADAPTED = "after stage 2 by adapters"


@dataclass(frozen=True)
class Judged:
    """One model as an experiment sees it.

    Attributes:
        title: what it is.
        samples: (n, h, w, c) uint8.
        score: of these samples.
        loss: on held-out data.
    """

    title: str
    samples: np.ndarray
    score: Score
    loss: float


@dataclass(frozen=True)
class Branch:
    """One graft through both stages.

    Attributes:
        name: what it is called.
        report: what was edited.
        judged: the models in the order of `STAGES`.
        distilled: records of stage 1.
        finetuned: records of stage 2.
        adapted: the model after a stage 2 of adapters alone in the place of the other; None where there was none.
        adapting: records of that stage.
    """

    name: str
    report: Report
    judged: tuple[Judged, Judged, Judged]
    distilled: stages.History
    finetuned: stages.History
    adapted: Judged | None = None
    adapting: stages.History = field(default_factory=list)

    @property
    def all_judged(self) -> tuple[Judged, ...]:
        """Every model of it, in order."""
        return (*self.judged, *([self.adapted] if self.adapted else []))


@dataclass
class Stopwatch:
    """Announces pieces of work and keeps how many seconds each took.

    Attributes:
        seconds: by title.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def titled(self, title: str) -> Iterator[None]:
        """Say `title` with its number, time the block."""
        say(f"[{len(self.seconds) + 1}] {title}")
        start = time.perf_counter()
        yield
        self.seconds[title] = time.perf_counter() - start


class Experiment:
    """Everything that all grafts of a config have in common; every model is judged by the same noise and conditions.

    `teacher` with its `teacher_hash`; `data`, with held-out images; the `examiner` of all models; `clock` has timed what was
    done. Raises `BadInput` before any device work where teacher, data or one
    of `grafts` do not fit together; `what` names the experiment and, in `grafts`, a graft.
    """

    def __init__(self, config: ExperimentConfig, judging: Judging, what: str, grafts: Mapping[str, GraftConfig]) -> None:
        self.config, self.judging, self.clock = config, judging, Stopwatch()
        self._losses: dict[ModelSpec, Callable[[Params], dict[str, float]]] = {}
        require_model(config.teacher)
        with self.clock.titled("data and judge"):
            self.data = data = image_data.load(config.data)
            if not data.held_out or config.data.latents == "given":
                raise BadInput(f"data: the {what} wants images, some of them held out")
            examiners.check(judging, data)
            self.teacher = stages.open_model(config.teacher, lambda spec: self._vet(spec, grafts))
            self.teacher_hash = sha256_of_arrays(self.teacher.params)
            self.examiner: Examiner = examiners.kind_of(config.data)(judging, data)

    def _vet(self, spec: ModelSpec, grafts: Mapping[str, GraftConfig]) -> None:
        image_data.check_fit(self.data, spec)
        for name, config in grafts.items():
            try:
                stages.check_edit(config.edit, spec, lambda: self.data)
            except BadInput as error:
                raise BadInput(f"{name}: {error}") from None

    def judge(self, name: str, model: Model, title: str) -> Judged:
        """Draw samples of `model` and score them; say so."""
        examiner = self.examiner
        pixels = examiner.draw(model)
        score = examiner.score(pixels)
        loss = self._loss_of(model.spec)(model.params)["loss"]
        numbers = ", ".join(f"{one.title} {one.text(score[one])}" for one in examiner.measures)
        say(f"    {name}, {title}: {numbers}, held-out loss {loss:.4f}")
        return Judged(title, pictures.to_uint8(pixels), score, loss)

    def _loss_of(self, spec: ModelSpec) -> Callable[[Params], dict[str, float]]:
        """The held-out loss of models of a spec, compiled once for all of them."""
        if spec not in self._losses:
            stage, heldout = self.config.finetune, stages.heldout_of(self.data)
            assert heldout is not None, "checked at the beginning"
            self._losses[spec] = heldout_loss(spec, None, heldout, dtype=stage.compute_dtype, plan=stage.plan)
        return self._losses[spec]

    def branch(
        self, name: str, student: Model, report: Report, work: Path, distill: DistillStage, finetune: DiffusionConfig,
        subsets: tuple[str | None, str | None] = (None, None), adaptation: Adaptation | None = None,
    ) -> tuple[Branch, Model, Model | None]:  # fmt: skip
        """Take a fresh graft through both stages, judged before, between and after; returns also the final model, and the
        one of an `adaptation`, a stage 2 of adapters alone that begins where the other one does.

        A graft of modulations and norms alone has nothing to learn in stage 1 and goes straight to stage 2.

        `subsets`: the part of the training images that each stage sees. `work` keeps the trainings' checkpoints, so that
        the same call continues after an interruption.
        """
        titled, mesh = self.clock.titled, self.config.mesh
        data_1, data_2 = (image_data.reduced(self.data, subset) for subset in subsets)
        with titled(f"{name}: without training"):
            raw = self.judge(name, student, STAGES[0])
        distilled, after_1 = [], dataclasses.replace(raw, title=STAGES[1])
        if stages.has_stage_1(student):
            with titled(f"{name}: stage 1, distillation"):
                student, distilled = stages.run_distill(self.teacher, student, distill, data_1, work / "distill", mesh)
                after_1 = self.judge(name, student, STAGES[1])
        with titled(f"{name}: stage 2, fine-tuning"):
            final, finetuned = self._finetuned(student, finetune, data_2, work / "finetune")
            after_2 = self.judge(name, final, STAGES[2])
        branch = Branch(name, report, (raw, after_1, after_2), distilled, finetuned)
        if adaptation is None:
            return branch, final, None
        with titled(f"{name}: stage 2, adapters alone"):
            carrier, _ = stages.run_graft(student, adaptation)
            adapted, adapting = self._finetuned(carrier, adaptation.finetune, data_2, work / "adapt")
            judged = self.judge(name, graft(adapted, merge_lora()), ADAPTED)
        return dataclasses.replace(branch, adapted=judged, adapting=adapting), final, adapted

    def _finetuned(
        self, student: Model, stage: DiffusionConfig, data: image_data.Images, work: Path
    ) -> tuple[Model, stages.History]:  # fmt: skip
        """Stage 2; an evaluation at its end alone is left to `judge`, which compiles the loss anyway."""
        return stages.run_finetune(student, stage, data, work, self.config.mesh, evaluate=stage.loop.eval_every > 0)

    def identity(self, *parts: Any) -> str:
        """Twelve hex digits that change with `parts` (config dataclasses, JSON types), the data or the teacher."""
        trees = [configs.as_tree(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
        text = json.dumps([*trees, configs.as_tree(self.config.data), self.teacher_hash], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def forward_times(models: Mapping[str, Model]) -> dict[str, Timing]:
    """Times of one pass over `TIMED_BATCH` images, models of equal input taking turns `TIMED_ROUNDS` times."""
    x, t, cond = inputs_of(next(iter(models.values())).spec, TIMED_BATCH)
    return interleaved({name: lambda m=m: m(x, t, **cond) for name, m in models.items()}, TIMED_ROUNDS)
