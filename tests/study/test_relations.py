"""Who is left of whom: heads that look both ways, batches, the loss of a phase, and a whole small training."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.backbones import words
from graftax.backbones.pixart import pixart_spec
from graftax.checkpoint import save_model
from graftax.cli.main import main
from graftax.data.config import DataConfig
from graftax.data.pixels import images as image_data
from graftax.data.scenes.tokens import ids
from graftax.errors import BadInput
from graftax.study import relations
from graftax.study.relations import BEFORE, Mixed, Phase, RelationsLoss, look_both_ways
from graftax.testing import random_params, tiny_spec

TEXT = {"text_width": 16, "text_tokens": 16, "words": 78, "text_blocks": 1}
SPEC = pixart_spec(input_size=16, patch_size=2, hidden_size=32, depth=2, num_heads=2, **TEXT, text_heads=4)
PARAMS = random_params(SPEC, jax.random.key(0))


@pytest.fixture(scope="module", autouse=True)
def few_held_out():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_data, "HELD_OUT", 60)
        yield


@pytest.fixture(scope="module")
def images(few_held_out):
    return image_data.load(DataConfig(source="scenes", size=64, latents="scenes", limit=200))


def test_new_heads_tell_a_things_word_what_stands_around_it():
    """The words of things change with the relation, ten times as much as where a training left them unmoved by it."""

    def changes(params):
        texts = jnp.asarray(ids(["a cat left of a dog", "a cat right of a dog"]))
        found, _ = words.embedded(SPEC, params, texts)
        return float(jnp.abs(found[0, [1, 5]] - found[1, [1, 5]]).mean())  # of "cat" and "dog"

    quiet = jax.tree.map(lambda x: x, PARAMS)
    quiet["words"]["blocks_0"]["proj"]["kernel"] = 0.01 * quiet["words"]["blocks_0"]["proj"]["kernel"]
    new = look_both_ways(SPEC, quiet, jax.random.key(1))
    assert changes(new) > 10 * changes(quiet)
    table = np.asarray(new["words"]["positions"]["embedding"])
    assert [np.flatnonzero(table[:, head] == 0).tolist() for head in (0, 1)] == [[17, 18, 19, 20, 21], [1, 2, 3, 4, 5, 6, 7]]
    assert (table[:, 2:] == PARAMS["words"]["positions"]["embedding"][:, 2:]).all()
    for name in ("query", "key", "value"):  # the other heads, and all else, are as they were
        kept = [part["words"]["blocks_0"][name]["kernel"][:, 8:] for part in (new, quiet)]
        np.testing.assert_array_equal(*kept)
    np.testing.assert_array_equal(
        new["blocks"]["00"]["cross"]["kv"]["kernel"], PARAMS["blocks"]["00"]["cross"]["kv"]["kernel"]
    )


def test_batches_are_relations_and_then_others(images):
    phase, related = (
        Phase(steps=1, learning_rate=1.0, relations=20, others=5, leading=1.0),
        relations._ids(["left", "above"]),
    )
    batches = Mixed(images, phase, 3)
    first, second = next(batches), next(batches)
    assert np.isin(first["text"][:20], related).any(1).all()
    assert not np.isin(first["text"][20:], relations._ids(["left", "right", "above", "below"])).any()
    assert (first["text"][:20] != first["against"][:20]).any(1).all()
    batches.restore(1)
    again = next(batches)
    assert all((again[name] == second[name]).all() for name in second)
    assert batches.state() == 2
    every = Mixed(images, Phase(steps=1, learning_rate=1.0, relations=20, others=5), 3)
    assert np.isin(next(every)["text"][:20], relations._ids(["right", "below"])).any()


def test_the_loss_asks_what_its_phase_says(images):
    phase = Phase(steps=1, learning_rate=1.0, relations=3, others=4, taught=True, weight=0.5)
    batch = jax.tree.map(jnp.asarray, next(Mixed(images, phase, 0)))
    loss, found = jax.jit(RelationsLoss(SPEC, phase))({**PARAMS, BEFORE: PARAMS}, batch, jax.random.key(0))
    assert found["others"] == pytest.approx(0, abs=1e-10)  # nobody has changed yet
    assert loss == pytest.approx(3 / 7 * float(_mean_loss(batch, phase)) + 0.5 * float(found["missing"]), rel=1e-4)
    assert 0 <= found["missing"] <= 0.31


def _mean_loss(batch, phase):
    """Of the related images, by an untaught loss without others to weigh."""
    alone = Phase(steps=1, learning_rate=1.0, relations=3, others=4, weight=0.0)
    total, found = jax.jit(RelationsLoss(SPEC, alone))({**PARAMS, BEFORE: PARAMS}, batch, jax.random.key(0))
    return (7 * total - 4 * found["others"]) / 3


def tree_of(tmp_path) -> dict:
    """Settings of a training of two small phases, whose start is saved."""
    save_model(tmp_path / "start", SPEC, PARAMS, {})
    phases = [
        {"steps": 2, "learning_rate": 1e-3, "relations": 2, "others": 2, "times": (450, 750)},
        {"steps": 3, "learning_rate": 1e-3, "relations": 2, "others": 4, "taught": True, "text_alone": False},
    ]
    return {
        "task": "relations", "workdir": str(tmp_path / "run"), "model": str(tmp_path / "start"), "phases": phases,
        "data": {"source": "scenes", "size": 64, "latents": "scenes", "limit": 100},
    }  # fmt: skip


def test_a_dry_run_tells_of_every_phase(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(f"def get_config():\n    return {tree_of(tmp_path)!r}\n")
    assert main(["train", "--config", str(config), "--dry-run"]) == 0
    first, second = re.split(r"(?=phase 2 of 2)", capsys.readouterr().out)
    assert re.search(r"phase 1 of 2 +2 steps\n", first)
    assert "image float32(4, 16, 16, 4)" in first
    assert re.search(r"phase 2 of 2 +3 steps\n", second)
    assert "against int32(6, 16)" in second
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_small_training_resumes_and_leaves_a_model_and_its_record(tmp_path, capsys):
    config, tree = tmp_path / "config.py", tree_of(tmp_path)
    config.write_text(f"def get_config():\n    return {tree!r}\n")
    assert main(["train", "--config", str(config)]) == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert len(record["told"]) == 3
    assert set(record["held_out"]) == {"mse", "right", "left of", "right of", "above", "below"}
    trained = graftax.load(tmp_path / "run" / "model")
    assert main(["train", "--config", str(config)]) == 0
    jax.tree.map(np.testing.assert_array_equal, graftax.load(tmp_path / "run" / "model").params, trained.params)
    for part, leaf in (("x_embedder", "kernel"), ("words", "embed")):
        changed = jax.tree.map(lambda a, b: bool((a != b).any()), trained.params[part][leaf], PARAMS[part][leaf])
        assert all(jax.tree.leaves(changed))
    changed = str(tree).replace("0.001", "0.002")
    config.write_text(f"def get_config():\n    return {changed}\n")
    assert main(["train", "--config", str(config)]) == 2  # and not the old run under a new name
    assert "learning_rate" in capsys.readouterr().err


def test_other_models_are_refused():
    with pytest.raises(BadInput, match=r"relations: a dit, .* expected a PixArt of noise that reads words"):
        relations.check(tiny_spec())
    few = pixart_spec(input_size=8, patch_size=2, hidden_size=32, depth=1, num_heads=2, **TEXT, text_heads=2)
    with pytest.raises(BadInput, match="relations: 2 heads of the text encoder, expected 4 or more"):
        look_both_ways(few, random_params(few, jax.random.key(0)), jax.random.key(0))
    for wrong in ({"steps": 0}, {"relations": 0}, {"others": 0}, {"leading": 1.5}, {"times": (750, 450)}, {"margin": 0.0}):
        with pytest.raises(BadInput, match=f"phase {next(iter(wrong))}: got"):
            Phase(**{"steps": 1, "learning_rate": 1.0, **wrong})
    with pytest.raises(BadInput, match=r"learning_rate: got 0\.0"):
        Phase(steps=1, learning_rate=0.0)
    with pytest.raises(BadInput, match="phases: got none"):
        relations.RelationsTraining(task="relations", workdir="x", phases=())


def test_a_model_that_does_not_fit_is_refused_before_scenes_are_drawn(monkeypatch):
    monkeypatch.setattr(image_data, "load", lambda _: pytest.fail("the data was loaded"))
    config = relations.RelationsTraining(
        task="relations", workdir="x", model="demo", phases=(Phase(steps=1, learning_rate=1.0),)
    )
    for start in (relations.run, relations.dry_run):
        with pytest.raises(BadInput, match="expected a PixArt of noise that reads words"):
            start(config)
