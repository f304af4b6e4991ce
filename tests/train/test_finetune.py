"""Whole models trained from Python: stage 2 and from scratch, from arrays, without any config file."""

import dataclasses
import functools
import importlib
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import graftax
from graftax.data.pipeline import batches
from graftax.diffusion import Flow, Process
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.collect import spread
from graftax.spec import Prediction
from graftax.testing import random_params, tiny_spec
from graftax.train import (
    DiffusionConfig,
    LoopConfig,
    OptimiserConfig,
    diffusion_loss,
    finetune,
    fit,
    heldout_loss,
    latest_weights,
    train,
    train_job,
    training_tree,
)
from graftax.train.finetune import FRESH
from graftax.train.record import read_metrics
from graftax.train.state import TrainState

SPEC = tiny_spec(depth=1)
RNG = np.random.default_rng(0)
ARRAYS = {"image": RNG.standard_normal((8, 8, 8, 4), np.float32), "label": np.arange(8)}
HELDOUT = {"image": RNG.standard_normal((4, 8, 8, 4), np.float32), "label": np.arange(4)}
CONFIG = DiffusionConfig(
    loop=LoopConfig(4, seed=5, log_every=1, eval_every=2, save_every=2), batch_size=4, ema_decay=0.5,
    optimiser=OptimiserConfig(learning_rate=1e-3, warmup_steps=0),
)  # fmt: skip
PICTURE = np.arange(6 * 7 * 3, dtype=np.uint8).reshape(6, 7, 3)


@functools.cache
def student() -> Model:
    teacher = Model(SPEC, random_params(SPEC, jax.random.key(0)))
    return graftax.graft(teacher, graftax.replace("blocks[0].mixer", "swa"), rng=jax.random.key(1))


def watch(model: Model) -> dict[str, Any]:
    assert set(model.params["blocks"]) == {"00"}  # as people know it
    return {"picture": PICTURE, "weight": jnp.abs(model.params["blocks"]["00"]["mlp"]["fc1"]["bias"]).sum()}


Run = tuple[str, Model, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fine-tuning with all that there is: its workdir, the model and the records."""
    workdir = str(tmp_path_factory.mktemp("finetune") / "run")
    return workdir, *finetune(student(), ARRAYS, CONFIG, workdir, HELDOUT, watch=watch, show=False)


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def by_hand() -> tuple[TrainState, list[dict[str, Any]]]:
    """The same training put together by hand, without files: its last state and its lines."""
    model = student()
    loss, frozen = diffusion_loss(model.spec, Process(), dtype=jnp.float32), CONFIG.frozen_in(model.spec)
    job = train_job(
        lambda: training_tree(model.spec, model.params, frozen), loss, CONFIG.optimiser, ema_decay=0.5,
        frozen=frozen,
    )  # fmt: skip
    stream = batches(ARRAYS | {"label": ARRAYS["label"].astype(np.int32)}, 4, 5)
    lines: list[dict[str, Any]] = []
    return fit(job, stream, LoopConfig(4, seed=5, log_every=1), on_record=lines.append, show=False), lines


def test_it_is_a_job_of_the_objective_over_the_arrays(run: Run, by_hand: tuple[TrainState, list[dict[str, Any]]]) -> None:
    """The same bits come out."""
    (state, lines), (_, trained, history) = by_hand, run
    assert_same(spread(student().spec, state.ema_params), trained.params)
    assert [line["loss"] for line in lines] == [line["loss"] for line in history if line["split"] == "train"]


def test_the_student_comes_back_with_its_record(run: Run) -> None:
    workdir, trained, history = run
    assert (trained.spec, trained.meta.sites) == (student().spec, student().meta.sites)
    assert trained.meta.edits == (*student().meta.edits, "finetune(steps=4)")
    assert trained.params["pos_embed"].tolist() == student().params["pos_embed"].tolist()
    assert [(line["step"], line["split"]) for line in history] == [
        (1, "train"), (2, "train"), (2, "eval"), (3, "train"), (4, "train"), (4, "eval"),
    ]  # fmt: skip
    assert history == read_metrics(workdir)
    measured = heldout_loss(trained.spec, Process(), HELDOUT)(trained.params)
    assert {name: history[-1][name] for name in measured} == pytest.approx(measured, rel=1e-5)
    table = (Path(workdir) / "parameters.txt").read_text()
    assert "| blocks[0]/mixer/qkv/kernel" in table
    assert "new" in table
    assert "frozen" in table


def test_what_is_watched_is_recorded(run: Run) -> None:
    workdir, trained, history = run
    assert history[-1]["weight"] == pytest.approx(float(watch(trained)["weight"]), rel=1e-6)
    found = sorted(path.name for path in (Path(workdir) / "images").iterdir())
    assert found == ["eval_picture_00000002.png", "eval_picture_00000004.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(Path(workdir) / "images" / found[-1])), PICTURE)


@pytest.mark.slow
def test_the_same_call_goes_on_from_the_last_checkpoint_to_the_bit(run: Run, tmp_path: Path) -> None:
    workdir, trained, history = run
    shutil.copytree(workdir, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/4")  # as if killed after step 2
    resumed, lines = finetune(student(), ARRAYS, CONFIG, str(tmp_path / "cut"), HELDOUT, watch=watch, show=False)
    assert_same(resumed.params, trained.params)
    losses = [[line["loss"] for line in one] for one in (lines, history)]
    assert losses[0] == losses[1]
    done, again = finetune(student(), ARRAYS, CONFIG, workdir, HELDOUT, watch=watch, show=False)  # finished
    assert_same(done.params, trained.params)
    assert again == history


@pytest.mark.parametrize("changed", ["spec", "start", "process"])
def test_a_checkpoint_of_another_start_is_refused(run: Run, changed: str) -> None:
    model, options = student(), {}
    if changed == "process":
        options["process"] = Process().respaced(50)
    elif changed == "spec":
        model = graftax.graft(model, graftax.replace("blocks[0].mlp", "mlp", ratio=2), rng=jax.random.key(0))
    else:
        model = model.replace(params=random_params(model.spec, jax.random.key(9)))
    with pytest.raises(BadInput, match=changed):
        finetune(model, ARRAYS, CONFIG, run[0], show=False, **options)


@pytest.mark.slow
def test_training_from_scratch_is_the_same_from_the_seeds_weights() -> None:
    short = DiffusionConfig(loop=LoopConfig(2, seed=5), batch_size=4)
    lines: list[dict[str, Any]] = []
    model, history = train(SPEC, (ARRAYS["image"], ARRAYS["label"]), short, on_record=lines.append, show=False)
    assert (model.spec, model.meta.edits, history) == (SPEC, ("train(steps=2)",), lines)
    start = Model(SPEC, graftax.models.init(SPEC, jax.random.fold_in(jax.random.key(5), FRESH)))
    same, _ = finetune(start, ARRAYS, short, show=False)
    assert_same(model.params, same.params)


@pytest.mark.slow
def test_a_velocity_model_learns_and_is_drawn() -> None:
    """All images are 0.5 in every number: the loss of knowing nothing is 1.25, and at best next to nothing."""
    spec = SPEC.replace(prediction=Prediction("velocity", "data", False))
    data = {"image": np.full((8, 8, 8, 4), 0.5, np.float32), "label": np.arange(8)}
    config = dataclasses.replace(
        CONFIG, loop=LoopConfig(150, eval_every=0), batch_size=8, ema_decay=0.8, times="logit_normal(0, 1)",
        optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=0),
    )  # fmt: skip
    model, history = train(spec, data, config, heldout=data, show=False)
    start = heldout_loss(spec, Flow(), data)(graftax.models.init(spec, jax.random.key(0)))
    assert start["loss"] == pytest.approx(1.25, rel=0.1)
    assert history[-1]["loss"] < 0.3
    drawn = graftax.sample(model, np.arange(4), steps=10, cfg_scale=1.0)
    assert float(jnp.abs(drawn - 0.5).mean()) < 0.2


def test_times_of_a_config_are_those_that_are_trained_at(run: Run) -> None:
    """All else equal, the cleanest two steps alone."""
    short = dataclasses.replace(CONFIG, loop=dataclasses.replace(CONFIG.loop, steps=1), times="uniform(0, 0.002)")
    first = finetune(student(), ARRAYS, short, show=False)[1][0]["loss"]
    assert first != pytest.approx(run[2][0]["loss"], rel=0.01)
    with pytest.raises(BadInput, match="times: got even"):
        dataclasses.replace(CONFIG, times="even")


def refused(tmp_path: Path, message: str, model: Model, data: Any, config: DiffusionConfig = CONFIG) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        finetune(model, data, config, tmp_path / "run", show=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    half = student().replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), student().params))
    refused(tmp_path, "student: .*bfloat16", half, ARRAYS)
    refused(tmp_path, "data: got int", student(), 5)
    refused(tmp_path, r"data image: float32\(8, 4, 4, 4\)", student(), (ARRAYS["image"][:, ::2, ::2], ARRAYS["label"]))
    refused(tmp_path, "data label: 5..12, expected classes 0..9", student(), (ARRAYS["image"], ARRAYS["label"] + 5))
    unknown = DiffusionConfig(loop=LoopConfig(4), frozen=("no_such_leaf",))
    refused(tmp_path, "frozen: 'no_such_leaf' matches no parameter", student(), ARRAYS, unknown)


@pytest.mark.slow
def test_the_weights_as_trained_last_are_to_be_had_beside_their_averages(run, by_hand):
    workdir, averaged, _ = run
    raw = latest_weights(averaged, CONFIG, workdir)
    assert_same(raw.params, spread(student().spec, by_hand[0].params))
    bias = ("blocks", "00", "mlp", "fc1", "bias")
    assert not np.array_equal(leaf(raw.params, bias), leaf(averaged.params, bias))


def test_there_are_no_latest_weights_where_nothing_was_trained(tmp_path):
    with pytest.raises(BadInput, match="no checkpoint in it, expected the work folder of a training"):
        latest_weights(student(), CONFIG, tmp_path)


def leaf(tree, path):
    return functools.reduce(lambda below, key: below[key], path, tree)


def test_held_out_data_are_looked_at_before_the_training():
    with pytest.raises(BadInput, match="data label: float64"):
        finetune(student(), ARRAYS, CONFIG, heldout={**HELDOUT, "label": np.arange(4.0)}, show=False)


def test_averages_that_hardly_leave_their_start_are_said(monkeypatch, capsys):
    def over(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("graftax.train.finetune"), "fit_recorded", over)
    for decay, warmup in ((0.999, False), (0.999, True), (0.5, False)):
        with pytest.raises(KeyboardInterrupt):
            finetune(student(), ARRAYS, dataclasses.replace(CONFIG, ema_decay=decay, ema_warmup=warmup))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "ema_decay" in line]
    assert "hold 100% of the first ones" in line
