"""A grafting experiment through the verbs, on a world of seconds: results, resumption, ends other than success."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from graftax import api
from graftax.testing import assert_trees_close

SLOW = pytest.mark.slow
DEPTH = 2


def weights(folder):
    return api.load(folder).params


@pytest.fixture
def grafted(run, recipe, tmp_path):
    """The recipe after its first verb; gives the run's folder."""
    assert run("graft", "--config", recipe)[0] == 0
    return tmp_path / "run"


def test_graft_distill_finetune_sample(run, recipe, grafted, tmp_path, teacher):
    code, out, _ = run("distill", "--config", recipe)
    assert code == 0
    assert "relative error" in out
    code, out, _ = run("finetune", "--config", recipe)
    assert code == 0
    assert "held-out data" in out
    old, raw, one, two = (
        weights(folder) for folder in (teacher, *(grafted / n for n in ("grafted", "distilled", "finetuned")))
    )
    block = ("blocks", "01", "mixer", "in_proj", "kernel")
    assert np.any(_at(one, block) != _at(raw, block)), "stage 1 trains the scions"
    assert np.all(_at(one, ("final", "linear", "kernel")) == _at(old, ("final", "linear", "kernel"))), "and nothing else"
    assert np.any(_at(two, ("final", "linear", "kernel")) != _at(old, ("final", "linear", "kernel"))), "stage 2 trains all"
    assert np.all(two["pos_embed"] == old["pos_embed"]), "but the position table"
    assert api.load(grafted / "finetuned").meta.edits[1:] == ("distill(steps=6)", "finetune(steps=6)")

    argv = ("sample", grafted / "finetuned", "--steps=3", "--labels=0,2", "--per-class=3")
    assert run(*argv, f"--out={tmp_path}/x.png")[0] == 0
    assert Image.open(tmp_path / "x.png").height == 2 * 96 + 2, "magnified, a row per class"
    assert run(*argv, f"--out={tmp_path}/x.npz")[0] == 0
    with np.load(tmp_path / "x.npz") as found:
        assert found["images"].shape == (6, 8, 8, 1)
        assert found["images"].dtype == np.uint8
        assert found["labels"].tolist() == [0, 0, 0, 2, 2, 2]


def _at(tree, path):
    for key in path:
        tree = tree[key]
    return np.asarray(tree)


def test_same_seed_same_samples(run, tmp_path, teacher):
    argv = ("sample", teacher, "--steps=2", "--sampler=ddpm", "--per-class=2")
    for name, more in {"a": (), "b": (), "c": ("--seed=1",)}.items():
        assert run(*argv, f"--out={tmp_path}/{name}.npz", *more)[0] == 0
    a, b, c = (np.load(tmp_path / f"{name}.npz")["images"] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.slow
def test_train_from_scratch_leaves_model_and_record(run, refused, tmp_path, data):
    path = tmp_path / "c.py"
    path.write_text(f'''
def get_config():
    return {{
        "task": "dit", "workdir": "{tmp_path}/scratch",
        "training": {{"loop": {{"steps": 4, "log_every": 2, "eval_every": 2}}, "batch_size": 8}},
        "data": {{"source": "{data}", "size": 8, "held_out": 0.25}},
        "model": {{"input_size": 8, "in_channels": 1, "hidden_size": 32, "depth": 1, "num_heads": 2, "num_classes": 3}},
    }}
''')
    assert run("train", "--config", path, "--config.training.ema_decay=0.5")[0] == 0
    model = api.load(tmp_path / "scratch" / "model")
    assert model.spec.depth == 1
    record = json.loads((tmp_path / "scratch" / "record.json").read_text())
    assert record["steps"] == 4
    assert record["images_seen"] == 32
    assert record["config"]["training"]["ema_decay"] == 0.5
    assert [line["step"] for line in record["curve"]["held_out"]] == [2, 4]
    assert record["held_out"]["loss"] == record["curve"]["held_out"][-1]["loss"]
    assert run("train", "--config", path, "--config.training.ema_decay=0.5")[0] == 0  # done already: the same again
    assert_trees_close(weights(tmp_path / "scratch" / "model"), model.params, rtol=0, atol=0)
    assert "ema_decay" in refused("train", "--config", path)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "score"), [("autoencoder", "psnr"), ("classifier", "accuracy")])
def test_small_networks_train_save_and_load(run, refused, tmp_path, task, score):
    from graftax.nets import small

    sizes = {"autoencoder": "'width': 8", "classifier": "'widths': (8, 8, 8), 'features': 8"}[task]
    frozen = ("latent_stats",) if task == "autoencoder" else ()
    path = tmp_path / "c.py"
    path.write_text(f'''
def get_config():
    return {{
        "task": "{task}", "workdir": "{tmp_path}/net", "data": {{"limit": 64}}, "model": {{{sizes}}},
        "training": {{"loop": {{"steps": 2}}, "batch_size": 8, "frozen": {frozen}}},
    }}
''')
    assert run("train", "--config", path)[0] == 0
    record = json.loads((tmp_path / "net" / "record.json").read_text())
    assert np.isfinite(record["held_out"][score])
    _, params = small.load(task, str(tmp_path / "net" / "model"))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) > 0
    other = {"autoencoder": "classifier", "classifier": "autoencoder"}[task]
    path.write_text(path.read_text().replace('"limit": 64', '"limit": 64, "latents": "demo"'))
    assert "latents" in refused("train", "--config", path)
    (tmp_path / "net" / "model" / f"{task}.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=f"expected a graftax-{other}"):
        small.load(other, str(tmp_path / "other.safetensors"))


def test_non_finite_training_ends_with_3_and_keeps_the_last_good_state(run, recipe, grafted):
    rate = "--config.finetune.optimiser.learning_rate=1e30"
    code, _, err = run("finetune", "--config", recipe, "--student", grafted / "grafted", rate)
    assert code == 3
    assert err.splitlines()[-1].startswith("graftax: error: step 2: loss or gradient not finite")
    assert any((grafted / "finetune" / "checkpoints").iterdir())
    assert not (grafted / "finetuned").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "stage", "more"),
    [
        ("distill", "distilled", ()), ("finetune", "finetuned", ()),
        ("finetune", "finetuned", ("--config.finetune.recipe=tread(0, 0) + stochastic_depth(0.2) + sra(1, 2)",)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_run_again_gives_the_same_bits(run, recipe, grafted, tmp_path, verb, stage, more, kill):
    """kill -9, or a polite SIGTERM (exit code 42), somewhere in the middle; then the same command again. Of stage 2 also
    with a recipe that draws routes and drops, and has a head, which the averaged model teaches."""
    steps = 40
    length = f"--config.{'distill.settings' if verb == 'distill' else 'finetune.loop'}.steps={steps}"
    student = () if verb == "distill" else ("--student", str(grafted / "grafted"))
    every = f"--config.{verb}{'' if verb == 'distill' else '.loop'}.eval_every=0"
    argv = [verb, "--config", str(recipe), length, every, *student, *more]
    whole = tmp_path / "whole"
    assert run(*argv, "--student", grafted / "grafted", "--workdir", whole)[0] == 0

    process = subprocess.Popen([sys.executable, "-m", "graftax.cli", *argv], stderr=subprocess.PIPE, text=True)
    saved = grafted / verb / "checkpoints"
    _wait(lambda: process.poll() is not None or any(saved.glob("[0-9]*/record")))
    os.kill(process.pid, kill)
    _, err = process.communicate()
    if kill == signal.SIGTERM:
        assert process.returncode == 42, err
        assert err.strip().splitlines()[-1].startswith("graftax: error: SIGTERM: saved step")
    assert not (grafted / stage).exists(), "finished before it was killed"
    assert run(*argv)[0] == 0
    assert_trees_close(weights(grafted / stage), weights(whole / stage), rtol=0, atol=0)


def _wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_changed_config_does_not_continue_another_run(run, refused, recipe, grafted):
    assert run("distill", "--config", recipe)[0] == 0
    assert "learning_rate" in refused("distill", "--config", recipe, "--config.distill.settings.learning_rate=0.5")


def test_given_latents_train_a_model(run, refused, recipe, grafted, tmp_path, data):
    """What `sample` writes without a decoder is a data set."""
    with np.load(data) as file:
        latents, labels = file["images"][..., None] / np.float32(127.5) - 1, file["labels"]
    path = tmp_path / "latents.npz"
    np.savez(path, latents=latents.astype(np.float16), labels=labels)
    argv = ("distill", "--config", recipe, f"--config.data.source={path}", "--config.data.latents=given")
    assert run(*argv)[0] == 0
    np.savez(path, latents=latents, labels=labels[:-1])
    assert "labels" in refused(*argv)
    np.savez(path, latents=latents.astype(np.uint8), labels=labels)
    assert "expected floats" in refused(*argv)
    np.savez(path, images=latents)
    assert "latents" in refused(*argv)


def test_data_must_fit_the_model(refused, recipe, grafted, tmp_path):
    wide = tmp_path / "wide.npz"
    np.savez(wide, images=np.zeros((9, 8, 8, 3), np.uint8), labels=np.arange(9) % 3)
    many = tmp_path / "many.npz"
    np.savez(many, images=np.zeros((9, 8, 8, 1), np.uint8), labels=np.arange(9))
    assert "(8, 8, 3)" in refused("distill", "--config", recipe, f"--config.data.source={wide}")
    student = ("--student", grafted / "grafted")
    assert "classes" in refused("finetune", "--config", recipe, *student, f"--config.data.source={many}")
