"""Teaching a model of scenes who is left of whom, which the plain loss does not.

Which of two things stands left depends on the order of their words and on the relation together: each by itself says
nothing, so that at first no step of a training helps (an exclusive or), and the model draws them anywhere. Three things
lead away:

- Two heads of the text encoder look ahead and behind by their positions alone (`look_both_ways`), so that a thing's word
  tells the others what relation stands behind or before it.
- At first nearly all relations are "left of" and "above", which the order of the words alone answers; then all four.
- The error under the caption with its groups exchanged is held above that under the right one, picture and noise being the
  same (`graftax.train.recipes.against`).

Only the way of the text into the picture is trained so: text encoder, captions' projection, cross-attention. What was
there before then teaches all other captions anew, by its answers: the squared error to a frozen copy, which has no noise
of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax import api
from graftax import config as configs
from graftax.backbones import words
from graftax.checkpoint import save_model
from graftax.checkpoint.files import sha256_of_arrays
from graftax.checkpoint.paths import work_path, write_text
from graftax.data.config import DataConfig
from graftax.data.pixels import images as image_data
from graftax.data.pixels.images import Images
from graftax.data.scenes.tokens import ids
from graftax.data.scenes.vocabulary import RELATIONS
from graftax.data.source import AGAINST
from graftax.errors import BadInput
from graftax.models import Model
from graftax.ops.base import Params
from graftax.progress import say
from graftax.spec import ModelSpec
from graftax.study.dry_run import DryRun, dry_job
from graftax.study.run_folder import machine
from graftax.train import LoopConfig, MeshConfig, OptimiserConfig, fit, train_job
from graftax.train.diffusion_task import on_noised
from graftax.train.loop import Batch, Job, Metrics
from graftax.train.noising import noising_for
from graftax.train.recipes.against import HardNegatives

BEFORE = "before"
"""Where the training's tree has the model as it was."""

PICTURE = ("x_embedder", "t_embedder", "shared", "final", r"blocks/[^/]+/(?!cross).*")
"""A PixArt without the way of its text: paths of its parameters (`graftax.train.state.split`)."""

FIRST_WORDS = {name: name.split()[0] for name in RELATIONS}
"""By which a caption's relation is known."""

LEADING = ("left", "above")
"""Those of the relations that come first, which the order of the words answers."""

AHEAD, BEHIND = 5, 7
"""Words that the new heads look at, on either side."""

BARRED = -6.0
"""Logit of all others."""

VARIANCE = 0.1
"""Of what the frozen copy answers about the variance, beside the noise."""

DROPPED = 0.1
"""Share of the other captions that are left out, for guidance."""

STEPS = 1000
"""Of the process."""

TOLD_AT = 600
"""Step at which it is asked whether relations are told apart: there places are still open."""

TIME, NOISE, DROP = range(3)  # streams of a step's key


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the training. Raises `BadInput` on values that make none.

    Attributes:
        steps: updates.
        learning_rate: of Adam, after 20 steps.
        falls: whether it falls to 0, along a cosine.
        relations: images of a step whose caption has a relation, each also seen under the wrong caption.
        others: images of a step whose caption has none.
        leading: share of the relations that are "left of" or "above"; the rest are drawn from all.
        times: steps of the process at which the relations' images are seen, from and up to.
        margin: by what share of it the wrong caption's error is to exceed the right one's.
        weight: of what is missing of the margin.
        grad_clip: largest norm of a gradient.
        ema_decay: of the averaged weights, with which the next phase begins.
        text_alone: whether only the way of the text is trained.
        taught: whether other captions are learnt from the answers of the model as it was, not from their images.
    """

    steps: int
    learning_rate: float
    falls: bool = True
    relations: int = 24
    others: int = 16
    leading: float = 0.0
    times: tuple[int, int] = (0, STEPS)
    margin: float = 0.3
    weight: float = 0.2
    grad_clip: float = 1.0
    ema_decay: float = 0.0
    text_alone: bool = True
    taught: bool = False

    def __post_init__(self) -> None:
        first, end = self.times
        for name, fits, expected in (
            ("steps", self.steps >= 1, "1 or more"),
            ("relations", self.relations >= 1, "1 or more"),
            ("others", self.others >= 1, "1 or more"),
            ("leading", 0 <= self.leading <= 1, "a share in [0, 1]"),
            ("times", 0 <= first < end <= STEPS, f"from and up to, within 0 and {STEPS}"),
            ("margin", self.margin > 0, "a positive number"),
            ("weight", self.weight >= 0, "0 or more"),
        ):
            if not fits:
                raise BadInput(f"phase {name}: got {getattr(self, name)!r}, expected {expected}")
        _ = self.optimiser  # refuses what makes none

    @property
    def optimiser(self) -> OptimiserConfig:
        """Adam as the fields say."""
        falling: Any = {"schedule": "cosine", "decay_steps": self.steps} if self.falls else {}
        warm = min(20, self.steps - 1)
        return OptimiserConfig(self.learning_rate, warm, grad_clip=self.grad_clip, b2=0.99, **falling)


@dataclass(frozen=True, kw_only=True)
class RelationsTraining:
    """The whole training. Raises `BadInput` without phases.

    Attributes:
        task: "relations".
        workdir: folder of its results.
        phases: its parts, in turn.
        model: that learns, a PixArt of words.
        data: scenes.
        seed: of what is drawn.
        log_every: steps between records.
    """

    task: str
    workdir: str
    phases: tuple[Phase, ...]
    model: str = "scenes"
    data: DataConfig = field(default_factory=lambda: DataConfig(source="scenes", size=64, latents="scenes", limit=60_000))
    seed: int = 0
    log_every: int = 50

    def __post_init__(self) -> None:
        if not self.phases:
            raise BadInput("phases: got none, expected one or more")


def run(config: RelationsTraining) -> dict[str, Any]:
    """Train as `config` says; leaves model and record.json in its workdir, and a folder for each phase. Returns what
    record.json holds. Interrupted, the same call continues. One device trains, the default one. Raises `BadInput` on models
    and data that do not fit, and where a folder is of another training."""
    folder, start = Path(config.workdir), time.perf_counter()
    model, images = _begun(config)
    spec = model.spec
    params, history = look_both_ways(spec, model.params, jax.random.key(config.seed)), [told(spec, model.params, images)]
    for number in range(len(config.phases)):
        params = _trained(config, number, spec, params, model.params, images)
        history.append(told(spec, params, images))
        say(f"phase {number + 1}: {history[-1]}")
    source = f"{config.model}, then graftax train of relations, {sum(phase.steps for phase in config.phases):,} steps"
    save_model(folder / "model", spec, params, {**model.meta.to_dict(), "source": source, "data": [images.described]})
    record = {
        "config": configs.as_tree(config), "seconds": round(time.perf_counter() - start), "machine": machine(),
        "told": history, "held_out": history[-1],
    }  # fmt: skip
    write_text(work_path(folder) / "record.json", json.dumps(record, indent=1) + "\n")
    return record


def dry_run(config: RelationsTraining) -> list[DryRun]:
    """What each phase of `run` would do, without doing it. Raises `BadInput` as it does."""
    model, images = _begun(config)
    params, found = look_both_ways(model.spec, model.params, jax.random.key(config.seed)), []
    raw: Any = images.raw_train
    for number, phase in enumerate(config.phases):
        count, captions = phase.relations + phase.others, ((raw.text.shape[1],), raw.text.dtype)
        each = {"image": (images.shape, jnp.float32), "text": captions, AGAINST: captions}
        batch = {name: jax.ShapeDtypeStruct((count, *shape), dtype) for name, (shape, dtype) in each.items()}
        job = _job(config, number, model.spec, params, model.params)
        found.append(dry_job(job, phase.steps, batch, images, MeshConfig(data=1), _frozen(phase)))
    return found


def _begun(config: RelationsTraining) -> tuple[Model, Images]:
    """The model as it was, and what it is to learn from. Raises `BadInput` where they do not fit."""
    model = api.load(config.model)
    spec = check(model.spec)
    images = image_data.load(config.data)
    image_data.check_fit(images, spec)
    if AGAINST not in images.besides:
        raise BadInput(f"data.source {config.data.source!r}: no wrong captions beside the right ones, expected scenes")
    return model, images


def _trained(
    config: RelationsTraining, number: int, spec: ModelSpec, params: Params, before: Params, images: Images
) -> Params:
    """`params` after phase `number`; `before`: of the model as it was."""
    phase, seed = config.phases[number], config.seed + number
    job = _job(config, number, spec, params, before)
    loop = LoopConfig(phase.steps, seed=seed, log_every=config.log_every, save_every=500)
    state = fit(job, Mixed(images, phase, seed), loop, Path(config.workdir) / f"phase_{number + 1}")
    return {name: part for name, part in state.ema_params.items() if name != BEFORE}


def _job(config: RelationsTraining, number: int, spec: ModelSpec, params: Params, before: Params) -> Job[Any]:
    phase = config.phases[number]
    metadata = {"spec": spec.to_json(), "phase": configs.as_tree(phase), "start": sha256_of_arrays(params)}
    return train_job(
        lambda: {**params, BEFORE: before}, RelationsLoss(spec, phase), phase.optimiser, ema_decay=phase.ema_decay,
        ema_warmup=True, frozen=_frozen(phase), metadata=metadata, label=f"phase {number + 1} of {len(config.phases)}",
    )  # fmt: skip


def _frozen(phase: Phase) -> tuple[str, ...]:
    return (BEFORE, *(PICTURE if phase.text_alone else ()))


def check(spec: ModelSpec) -> ModelSpec:
    """`spec`, of a PixArt that predicts noise and reads words. Raises `BadInput` on others."""
    if spec.backbone != "pixart" or not words.reads_words(spec) or spec.prediction.time != "index":
        raise BadInput(f"relations: a {spec.backbone}, {spec.prediction}, expected a PixArt of noise that reads words")
    return spec


def look_both_ways(spec: ModelSpec, params: Params, key: jax.Array) -> Params:
    """`params` with two kinds of heads of the text encoder made anew in every block: the first quarter looks at the next
    `AHEAD` words alike, the second at the last `BEHIND`, whatever these say; what they bring is drawn afresh.

    Raises `BadInput` where there are fewer than four heads.
    """
    sizes = words.encoder(spec)
    heads, k, d = sizes.num_heads // 4, sizes.d_kv, sizes.d_model
    if not heads:
        raise BadInput(f"relations: {sizes.num_heads} heads of the text encoder, expected 4 or more")
    own = jax.tree.map(np.array, params[words.NAME])
    table, half = own["positions"]["embedding"], sizes.relative_attention_num_buckets // 2
    table[:, : 2 * heads] = BARRED
    table[half + 1 : half + 1 + AHEAD, :heads] = 0  # rows of the words behind this one, by distance
    table[1 : 1 + BEHIND, heads : 2 * heads] = 0
    new = slice(0, 2 * heads * k)
    for i in range(sizes.num_layers):
        block, rng = own[f"blocks_{i}"], jax.random.split(jax.random.fold_in(key, i), 3)
        block["query"]["kernel"][:, new] *= 0.1
        for name, one in zip(("key", "value"), rng, strict=False):
            block[name]["kernel"][:, new] = np.asarray(jax.random.normal(one, (d, new.stop))) * d**-0.5
        block["proj"]["kernel"][new] = np.asarray(jax.random.normal(rng[2], (new.stop, d))) * d**-0.5
    return {**params, words.NAME: jax.tree.map(jnp.asarray, own)}


class Mixed:
    """Endless batches of a phase: first the images with a relation, then the others.

    {"image" (n, h, w, c), "text" (n, m), "against" (n, m)}; batch i depends on seed and i alone.
    """

    def __init__(self, images: Images, phase: Phase, seed: int) -> None:
        raw: Any = images.raw_train
        self._arrays = {"image": images.train, "text": raw.text, AGAINST: raw.against}
        related = np.isin(raw.text, _ids(FIRST_WORDS.values()))
        leading = np.isin(raw.text, _ids(LEADING))
        self._related, self._leading, self._others = (np.flatnonzero(rows) for rows in (
            related.any(1), leading.any(1), ~related.any(1),
        ))  # fmt: skip
        self._phase, self._seed, self._count = phase, seed, 0

    def __iter__(self) -> Mixed:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rng, phase = np.random.Generator(np.random.Philox(key=self._seed, counter=self._count)), self._phase
        self._count += 1
        related = np.where(
            rng.random(phase.relations) < phase.leading, rng.choice(self._leading, phase.relations),
            rng.choice(self._related, phase.relations),
        )  # fmt: skip
        rows = np.concatenate([related, rng.choice(self._others, phase.others)])
        return {name: array[rows] for name, array in self._arrays.items()}

    def state(self) -> int:
        """How many batches have been given."""
        return self._count

    def restore(self, state: int) -> None:
        """Go on behind so many."""
        self._count = state


@dataclass(frozen=True, eq=False)
class RelationsLoss:
    """The loss of a phase, as `graftax.train.step` takes it: relations by their images and by how they are told from wrong
    captions, others by their images or by the answers of the model as it was.

    Attributes:
        spec: of the model.
        phase: what is asked.
    """

    spec: ModelSpec
    phase: Phase

    def __call__(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        own, process, n = (
            {k: part for k, part in params.items() if k != BEFORE},
            noising_for(self.spec),
            self.phase.relations,
        )
        x0, t, noise, text = self._drawn(batch, key)
        count, again = len(x0), (x0[:n], t[:n], noise[:n], batch[AGAINST][:n])  # the relations' images once more
        both = [jnp.concatenate(pair) for pair in zip((x0, t, noise, text), again, strict=True)]
        out = self._answers(own, both[0], both[1], both[2], both[3])
        losses = process.training_losses(out, both[0], both[1], both[2])
        right, wrong, plain = losses["mse"][:n], losses["mse"][count:], losses["loss"][n:count]
        missing = HardNegatives(self.phase.margin).value(right, wrong, jnp.zeros(n, bool))
        if self.phase.taught:
            before = self._answers(params[BEFORE], x0[n:], t[n:], noise[n:], text[n:])
            plain = _far(out[n:count], jax.lax.stop_gradient(before))
        loss = (losses["loss"][:n].sum() + plain.sum()) / count + self.phase.weight * missing
        return loss, {"related": right.mean(), "others": plain.mean(), "missing": missing}

    def _drawn(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Images, times, noise and right captions, some of the others' left out."""
        n, x0 = self.phase.relations, batch["image"]
        when, noise, dropped = (jax.random.fold_in(key, stream) for stream in (TIME, NOISE, DROP))
        related, others = jax.random.split(when)
        rest = noising_for(self.spec).draw(others, len(x0) - n)
        t = jnp.concatenate([jax.random.randint(related, (n,), *self.phase.times), rest])
        drop = jax.random.bernoulli(dropped, DROPPED, (len(x0), 1)) & (jnp.arange(len(x0))[:, None] >= n)
        text = jnp.where(drop, words.empty(len(x0), batch["text"].shape[1]), batch["text"])
        return x0, t, jax.random.normal(noise, x0.shape), text

    def _answers(self, params: Params, x0: jax.Array, t: jax.Array, noise: jax.Array, text: jax.Array) -> jax.Array:
        return on_noised(self.spec, noising_for(self.spec), params, x0, t, {"text": text}, noise, plan="auto", remat="auto")[
            0
        ]


def _far(out: jax.Array, before: jax.Array) -> jax.Array:
    """(b,) squared distance of answers (b, h, w, 2 c), noise and variance."""
    noise, variance = jnp.split(jnp.square(out - before).mean((1, 2)), 2, axis=-1)
    return noise.mean(-1) + VARIANCE * variance.mean(-1)


def told(spec: ModelSpec, params: Params, images: Images, most: int = 256) -> dict[str, float]:
    """How well held-out relations are told apart at step `TOLD_AT`: by what share the error under the wrong caption exceeds
    that under the right one, of each relation and in how many of all it does ("right"); and the error of all captions at
    evenly spread steps ("mse")."""
    raw: Any = images.raw_test
    process, test = noising_for(spec), images.test

    @jax.jit
    def error(params: Params, x0: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        noise = jax.random.normal(jax.random.key(0), x0.shape)
        out = on_noised(spec, process, params, x0, t, {"text": text}, noise)[0]
        return process.training_losses(out, x0, t, noise)["mse"]

    rows = np.flatnonzero(np.isin(raw.text, _ids(FIRST_WORDS.values())).any(1))[:most]
    t = jnp.full(len(rows), TOLD_AT, jnp.int32)
    right, wrong = (np.asarray(error(params, test[rows], t, text[rows])) for text in (raw.text, raw.against))
    ahead = wrong / right - 1
    which = {name: np.isin(raw.text[rows], _ids([word])).any(1) for name, word in FIRST_WORDS.items()}
    found = {name: float(ahead[mask].mean()) for name, mask in which.items() if mask.any()}
    count = min(most, len(test))
    every = jnp.linspace(0, STEPS - 1, count).astype(jnp.int32)
    mse = float(error(params, test[:count], every, raw.text[:count]).mean())
    return {name: round(value, 4) for name, value in {"mse": mse, "right": float((ahead > 0).mean()), **found}.items()}


def _ids(single: Iterable[str]) -> list[int]:
    """Numbers of words."""
    return [int(row[0]) for row in ids(list(single))]
