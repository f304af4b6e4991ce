"""The debate: small models at equal FLOPs, several seeds each, judged alike, and what is claimed of them. They are trained
from scratch, or are grafts of one model and trained on from its weights.

The first entrant's steps are the budget. Another takes as many as cost the same by `step_flops`: a route that halves a step
gives twice the steps, a wider model fewer. A model and seed is trained once and kept in the folder's record.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from graftax import api
from graftax import config as configs
from graftax.checkpoint.files import replacing, sha256_of_arrays
from graftax.data.features import ABOUT, NAME, write_features
from graftax.data.latents import LatentSet
from graftax.data.pixels import images as image_data
from graftax.data.pixels.images import Images
from graftax.draw import check_sampler
from graftax.errors import BadInput, NonFinite, naming
from graftax.evaluate import pictures
from graftax.evaluate.score import Score
from graftax.models import Model
from graftax.models.backbone import find
from graftax.models.cost import count_params, flops, train_flops
from graftax.nets import classifier, small
from graftax.progress import say
from graftax.spec import ModelSpec
from graftax.study import examiners, stages, sweep
from graftax.study.debate_config import DebateConfig, Entrant
from graftax.study.examiners import Examiner
from graftax.train import DiffusionConfig, heldout_loss, train
from graftax.train.recipes import AlignmentTap, Recipe, Teacher

RESULTS = sweep.RESULTS
FEATURES = "features"
"""Folder of what the judge's network sees in the training images."""


@dataclass(frozen=True)
class Plan:
    """One training to do.

    Attributes:
        entrant: its name.
        seed: added to the training's; draws what edits bring.
        spec: of the model.
        training: as the entrant has it.
        work: FLOPs of a step per image.
        identity: twelve hex digits that change with anything that the result depends on.
    """

    entrant: str
    seed: int
    spec: ModelSpec
    training: DiffusionConfig
    work: int
    identity: str

    def __str__(self) -> str:
        return f"{self.entrant}, seed {self.seed}, {self.training.loop.steps:,} steps"

    @property
    def picture(self) -> str:
        """File name of the grid of samples."""
        return sweep.picture_name(self.entrant, self.identity)


@dataclass(frozen=True)
class Run:
    """What became of a plan. JSON types and a `Score`.

    Attributes:
        entrant: the plan's.
        seed: the plan's.
        identity: the plan's.
        parameters: of the model.
        work: FLOPs of a step per image.
        steps: done.
        predicts: what the held-out loss is an error of; losses of others do not compare.
        seconds: of training.
        score: of samples, None of a failure.
        loss: on held-out data, likewise.
        failure: why it became non-finite, "" where it did not.
    """

    entrant: str
    seed: int
    identity: str
    parameters: int
    work: int
    steps: int
    predicts: str
    seconds: float
    score: Score | None = None
    loss: float | None = None
    failure: str = ""


@dataclass(frozen=True)
class Debated:
    """All that the page shows.

    Attributes:
        config: what was asked for.
        plans: in the order of the entrants.
        runs: likewise.
        examiner: of all models.
    """

    config: DebateConfig
    plans: tuple[Plan, ...]
    runs: tuple[Run, ...]
    examiner: Examiner

    @property
    def failed(self) -> tuple[Run, ...]:
        """Runs that became non-finite."""
        return tuple(run for run in self.runs if run.failure)

    def of(self, entrant: str) -> list[Run]:
        """An entrant's runs."""
        return [run for run in self.runs if run.entrant == entrant]


def step_flops(spec: ModelSpec, recipe: Recipe) -> int:
    """FLOPs of one training step per image: `train_flops` under the recipe's policy, heads of its losses on all tokens, and
    the averaged model's pass where a loss looks at that."""
    heads = jax.eval_shape(lambda: recipe.heads(spec, jax.random.key(0)))
    kernels = sum(leaf.size for leaf in jax.tree.leaves(heads) if leaf.ndim == 2)
    taught = [one.source.block for one in recipe.losses if isinstance(one, AlignmentTap) and isinstance(one.source, Teacher)]
    teachers = sum(flops(spec.replace(program=spec.program[:block]), head=False) for block in taught)
    return recipe.passes * train_flops(spec, recipe.policy) + 3 * 2 * spec.tokens * kernels + teachers


def run(config: DebateConfig, folder: Path) -> Debated:
    """Train and judge what `folder` has no record of yet, in order; the record is rewritten after each.

    An interrupted training continues from its own checkpoints. Raises `BadInput` before any device work where an entrant
    does not fit the data, and on records that cannot be read.
    """
    config.training.check_mesh(config.mesh, jax.device_count())
    contest = _Contest(config, folder)
    plans, done = contest.plans(), read_runs(folder / RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    left = [plan for plan in plans if not _is_done(plan, done, folder)]
    say(f"{len(plans)} runs, {len(plans) - len(left)} of them done already")
    start = time.perf_counter()
    for i, plan in enumerate(left):
        sweep.announce(plan, i, len(left), time.perf_counter() - start)
        done[plan.identity] = contest.run(plan)
        _write(folder / RESULTS, [done[p.identity] for p in plans if p.identity in done])
        jax.clear_caches()  # each entrant compiles its own programs, which nobody needs again
    runs = tuple(done[plan.identity] for plan in plans)
    _write(folder / RESULTS, runs)
    return Debated(config, plans, runs, contest.examiner)


class _Contest:
    """Data, judge and teacher of a debate, and what is done with a plan."""

    def __init__(self, config: DebateConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self.data = image_data.load(config.data)
        if not self.data.held_out or config.data.latents == "given":
            raise BadInput("data: the debate wants images, some of them held out")
        examiners.check(config.judging, self.data)
        self._read = stages.read_model(config.teacher) if config.teacher else None

    @functools.cached_property
    def examiner(self) -> Examiner:
        """Of all models."""
        return examiners.kind_of(self._config.data)(self._config.judging, self.data)

    def plans(self) -> tuple[Plan, ...]:
        """All of them, each entrant's steps worth the first one's."""
        config, budget, found = self._config, 0, []
        for name, entrant in config.entrants.items():
            with naming(f"entrants[{name!r}]"):
                spec, recipe = self._vetted(entrant)
            work = step_flops(spec, recipe)
            budget = budget or work * config.training.loop.steps
            steps = max(1, round(budget / work))
            for seed in config.seeds:
                training = entrant.trained(config.training, steps, seed)
                found.append(Plan(name, seed, spec, training, work, self._identity(name, spec, training)))
        return tuple(found)

    def _vetted(self, entrant: Entrant) -> tuple[ModelSpec, Recipe]:
        """Its model and recipe. Raises `BadInput` where these do not fit each other, the data, or how it is drawn."""
        config, spec, recipe = self._config, entrant.spec(self._read and self._read.spec), Recipe.parse(entrant.recipe)
        find(spec).check(spec)
        check_sampler(spec.prediction, config.sample(spec.prediction.is_flow).sampler)
        image_data.check_fit(self.data, spec)
        recipe.check(spec, config.training.batch_size // config.training.accumulate)
        seen = {*self.data.besides, *([NAME] if self.data.num_classes else [])}  # the judge of classes sees features
        if missing := sorted(recipe.arrays(spec).keys() - seen):
            raise BadInput(f"recipe {str(recipe)!r}: takes {missing[0]!r} of the data, which have none")
        return spec, recipe

    def _identity(self, name: str, spec: ModelSpec, training: DiffusionConfig) -> str:
        config = self._config
        drawn = config.sample(spec.prediction.is_flow)
        trees = [configs.as_tree(part) for part in (training, config.data, config.judging, drawn)]
        begins = [self._read_hash, list(config.entrants[name].edits)] if self._read else []
        text = json.dumps([name, spec.to_json(), *trees, *begins], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @functools.cached_property
    def _read_hash(self) -> str:
        return sha256_of_arrays(self._read.params) if self._read else ""

    @functools.cached_property
    def _teacher(self) -> Model | None:
        """On the devices."""
        return self._read and api.place(self._read)

    def run(self, plan: Plan) -> Run:
        """Train, draw, judge; numbers that are not finite are an outcome as well."""
        spec, work, start = plan.spec, self._folder / "work" / plan.identity, time.perf_counter()
        outcome: dict[str, Any]
        try:
            model, seconds = self._trained(plan, work), round(time.perf_counter() - start, 1)
            samples = self.examiner.draw(model, self._config.sample(spec.prediction.is_flow))
            outcome = {"score": self.examiner.score(samples), "loss": self._loss(model)}
        except NonFinite as error:
            say(f"    {plan}: failed: {error}")
            seconds, outcome = round(time.perf_counter() - start, 1), {"failure": " ".join(str(error).split())}
        else:
            pictures.save_png(self._folder / plan.picture, self.examiner.grid(pictures.to_uint8(samples)))
            say(f"    {self._said(outcome['score'])}, held-out loss {outcome['loss']:.4f}")
        shutil.rmtree(work, ignore_errors=True)  # checkpoints of a run that is over
        predicts = f"{spec.prediction.target}, {spec.prediction.path}"
        return Run(
            plan.entrant, plan.seed, plan.identity, count_params(spec), plan.work, plan.training.loop.steps, predicts,
            seconds, **outcome,
        )  # fmt: skip

    def _said(self, score: Score) -> str:
        return ", ".join(f"{one.title} {one.text(score[one])}" for one in self.examiner.measures)

    def _trained(self, plan: Plan, work: Path) -> Model:
        training, mesh = plan.training, self._config.mesh
        data = self._featured if NAME in Recipe.parse(training.recipe).arrays(plan.spec) else self.data
        if (model := self._teacher) is not None:
            graft = dataclasses.replace(self._config.entrants[plan.entrant].graft, seed=plan.seed)
            if graft.edits:
                model, _ = stages.run_graft(model, graft, lambda: self.data)
            return stages.run_finetune(model, training, data, work, mesh, evaluate=False)[0]
        batches = data.batches(training.batch_size, training.loop.seed)
        return train(plan.spec, batches, training, work, mesh=mesh.build(), rules=mesh.rules)[0]

    def _loss(self, model: Model) -> float:
        heldout, training = self.data.heldout, self._config.training
        assert heldout is not None, "checked at the beginning"
        evaluate = heldout_loss(model.spec, None, heldout, dtype=training.compute_dtype, plan=training.plan)
        return evaluate(model.params)["loss"]

    @functools.cached_property
    def _featured(self) -> Images:
        """The data with features, the config's or, where it names none, those of the judge's network."""
        if self.data.config.features is not None:
            return self.data
        folder, records = self._folder / FEATURES, self.data.raw_train
        if not (folder / ABOUT).exists():
            assert not isinstance(records, LatentSet), "checked at the beginning"
            name = self._config.judging.classifier
            spec, params = small.load_classifier(name)
            see = jax.jit(functools.partial(classifier.patches, spec, params))

            def encode(pixels: np.ndarray) -> jax.Array:
                return see(pixels[..., : spec.image_channels].astype(np.float32) / 127.5 - 1)

            write_features(folder, records, self.data.config.size, encode, f"classifier {name!r}")
        return dataclasses.replace(self.data, config=dataclasses.replace(self.data.config, features=str(folder)))


def _is_done(plan: Plan, done: dict[str, Run], folder: Path) -> bool:
    run = done.get(plan.identity)
    return run is not None and (bool(run.failure) or (folder / plan.picture).exists())


def _write(path: Path, runs: Sequence[Run]) -> None:
    lines = [{**dataclasses.asdict(run), "score": run.score and run.score.record()} for run in runs]
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"runs": lines}, indent=1) + "\n")


def read_runs(path: Path) -> dict[str, Run]:
    """The runs of a record by their identity, {} where there is no file. Raises `BadInput` on anything else."""
    if not path.exists():
        return {}
    try:
        lines = json.loads(path.read_text())["runs"]
        runs = [Run(**{**line, "score": line["score"] and Score.of_record(line["score"])}) for line in lines]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: {error!r}, expected the record of a debate; remove it to start over") from None
    return {run.identity: run for run in runs}
