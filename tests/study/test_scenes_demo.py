"""The demo on a model of words in small: four grafts, adapters, captions in its grids, categories in its tables."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from graftax import config
from graftax.backbones.pixart.variants import pixart_spec
from graftax.checkpoint import save_model, shipped
from graftax.data.config import DataConfig
from graftax.data.pixels import images
from graftax.data.scenes.caption import CATEGORIES
from graftax.errors import BadInput
from graftax.evaluate.bench.timing import Timing
from graftax.evaluate.drawing import SampleConfig
from graftax.nets import autoencoder, small
from graftax.nets.autoencoder import AutoencoderSpec
from graftax.study import demo as demos
from graftax.study import examiners, stages
from graftax.study.config import ADAPTERS_ALONE, DemoConfig, Judging, experiment_of
from graftax.study.examiners import EXACTLY, OVERALL, PARTS
from graftax.testing import random_params

CONFIGS = Path(__file__).parents[2] / "configs"
SPEC = pixart_spec(
    input_size=16, patch_size=4, hidden_size=32, depth=2, num_heads=2, words=78, text_width=16, text_tokens=16,
    text_blocks=1, text_heads=2,
)  # fmt: skip

CONFIG = """
def get_config():
    stage = {{"loop": {{"steps": 2, "log_every": 1, "eval_every": 2}}, "batch_size": 4,
             "optimiser": {{"learning_rate": 1e-2, "warmup_steps": 0}}, "ema_decay": 0.5}}
    return {{
        "kind": "demo", "workdir": {workdir!r}, "teacher": {teacher!r},
        "data": {{"source": "scenes", "size": 64, "latents": {autoencoder!r}, "limit": 8, "test_subset": "4"}},
        "graft": {{"edits": ("blocks[50%].mixer=hyena_x(kernel=4)",)}},
        "others": {others},
        "adaptation": {{"edits": ("lora('blocks/.*', rank=2)",), "finetune": {{**stage, "frozen": ("(?!lora/).*",)}}}},
        "distill": {{"settings": {{"steps": 2, "learning_rate": 1e-2}}, "batch_size": 4, "eval_every": 1}},
        "finetune": stage,
        "judging": {{"judged": 6, "shown": 1, "sample": {{
            "sampler": "dpmpp_2m", "steps": 2, "cfg_scale": 2.0, "cfg_channels": None, "batch_size": 6}}}},
    }}
"""
OTHERS = """tuple({"edits": (f"blocks[{share}].mixer={mixer}",)} for mixer, share in (
    ("hyena_x(kernel=4)", "*"), ("hyena_2d(kernel=3)", "50%"), ("hyena_2d(kernel=3)", "*")))"""


@pytest.fixture(autouse=True)
def few_real_scenes(monkeypatch):
    """They measure the judge, which has its own tests; and few are held out."""
    monkeypatch.setattr(examiners, "REAL", 6)
    monkeypatch.setattr(images, "HELD_OUT", 8)


@pytest.fixture
def tiny_autoencoder(tmp_path):
    """Of 64x64 pixels, that has learnt nothing."""
    spec = AutoencoderSpec(image_size=64, image_channels=3, width=8)
    params = jax.jit(autoencoder.init, static_argnums=0)(spec, jax.random.key(0))
    small.save("autoencoder", tmp_path / "autoencoder", spec.to_json(), params, {})
    return tmp_path / "autoencoder"


@pytest.fixture
def demo(tmp_path, tiny_autoencoder):
    """A function from the other grafts to a config file."""

    def demo(others="()"):
        save_model(tmp_path / "teacher", SPEC, random_params(SPEC, jax.random.key(0)), {"source": "test"})
        paths = {"workdir": tmp_path / "demo", "teacher": tmp_path / "teacher", "autoencoder": tiny_autoencoder}
        path = tmp_path / "demo.py"
        path.write_text(CONFIG.format(**{key: str(value) for key, value in paths.items()}, others=others))
        return path

    return demo


@pytest.mark.slow
def test_a_graft_goes_through_both_stages_and_adapters(run, demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demos, "forward_times", lambda models: {name: Timing((0.01, 0.02)) for name in models})
    code, out, err = run("demo", "--config", demo())
    assert code == 0, err
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    titles = ["without training", "after stage 1", "after stage 2", "after stage 2 by adapters"]
    assert list(results["models"]) == ["teacher", *(f"50 % grafted, {title}" for title in titles)]
    for line in results["models"].values():
        assert set(line) == {"overall", "exact", *CATEGORIES, "count", "heldout_loss"}
        assert line["count"] == 6
        assert np.isfinite(line["heldout_loss"])
    losses = [line["heldout_loss"] for line in results["models"].values()]
    assert len(set(losses)) == len(losses), "every stage has changed the model"
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "By category" in page
    assert "color attr" in page
    assert all(line in out for line in results["verdict"])
    assert {path.name for path in (tmp_path / "demo").glob("hyena_x*")} == {"hyena_x-1-of-2", "hyena_x-1-of-2-adapters"}


@pytest.mark.slow
def test_four_grafts_have_names_of_their_own_and_are_not_trained_twice(run, demo, tmp_path):
    path = demo(OTHERS)
    assert run("demo", "--config", path)[0] == 0
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    names = ["hyena_x, 50 %", "hyena_x, 100 %", "hyena_2d, 50 %", "hyena_2d, 100 %"]
    assert list(results["layer_errors"]) == names
    assert len(results["models"]) == 1 + 4 * 4
    assert len(results["verdict"]) == 1 + 4
    assert run("demo", "--config", path)[0] == 0
    assert json.loads((tmp_path / "demo" / "results.json").read_text())["models"] == results["models"]


def test_what_does_not_go_together_is_refused_before_any_work(refused, demo, tmp_path, monkeypatch):
    path = demo('({"edits": ("blocks[1].mixer=hyena_x(kernel=3)",)},)')
    assert "2 grafts are '50 % grafted'" in refused("demo", "--quiet", "--config", path)
    assert "judging.judged: got 7, expected a multiple of 6" in refused(
        "demo", "--quiet", "--config", path, "--config.judging.judged=7"
    )
    assert "finetune.frozen" in refused("demo", "--quiet", "--config", path, "--config.adaptation.finetune.frozen=()")
    assert "adaptation of graft: lora" in refused(
        "demo", "--quiet", "--config", path, "--config.adaptation.edits=lora(nothing)"
    )
    monkeypatch.setattr(shipped, "demo_path", lambda name: tmp_path / "nothing" / name)
    line = "model 'scenes': not shipped yet: train it with `graftax train --config configs/scenes.py`"
    assert line in refused("demo", "--quiet", "--what", "scenes", "--workdir", tmp_path / "demo")
    assert "--what scenes: beside --config" in refused("demo", "--what", "scenes", "--config", path)
    assert not list((tmp_path / "demo").glob("*"))


@pytest.mark.parametrize("name", ["scenes_graft.py", "scenes_sweep.py", "scenes_sweep.py:adapters"])
def test_grafts_of_the_shipped_configs_fit_the_shipped_model(name):
    spec = pixart_spec(**config.read(CONFIGS / "scenes.py")["model"])
    settings: Any = experiment_of(config.read(CONFIGS / name), "demo", "sweep")
    is_demo = isinstance(settings, DemoConfig)
    for graft in settings.grafts if is_demo else settings.variants.values():
        stages.check_edit(graft.edit, spec)
    own = [settings.adaptation] if is_demo else settings.variants.values()
    frozen = [each.finetune.frozen for each in own if each.finetune is not None]
    assert set(frozen) <= {(ADAPTERS_ALONE,)}
    assert len(frozen) == {"scenes_graft.py": 1, "scenes_sweep.py": 0, "scenes_sweep.py:adapters": 8}[name]
    assert (settings.teacher, settings.data.latents) == ("scenes", "scenes")


def test_scenes_are_examined_by_captions_of_every_category_in_turn(tiny_autoencoder):
    data = images.load(DataConfig(source="scenes", size=64, latents=str(tiny_autoencoder), limit=4))
    judging = Judging(judged=12, shown=1, sample=SampleConfig(steps=2, cfg_channels=None))
    examiner = examiners.Scenes(judging, data)
    assert examiner.real[OVERALL] == examiner.real[EXACTLY] == 1.0
    blank = np.ones((12, 64, 64, 3), np.float32)
    score = examiner.score(blank)
    assert score.count == 12
    assert {part: score[part] for part in PARTS} == dict.fromkeys(PARTS, 0.0)
    grid = examiner.grid(np.full((12, 64, 64, 3), 250, np.uint8))
    tiles = 6 * 128 + 5 * 6
    assert grid.shape[1] == tiles
    assert grid.shape[0] > 128, "captions stand below"
    with pytest.raises(BadInput, match="multiple of 6"):
        examiners.check(Judging(judged=10), data)
