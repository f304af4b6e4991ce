"""Writers and profiler traces from the command line, and the parameter table."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from graftax import config
from graftax.cli.main import main
from graftax.data.pixels import images
from graftax.distill.stage1 import table_of
from graftax.errors import BadInput
from graftax.models import Model
from graftax.study import stages
from graftax.study.config import DemoConfig
from graftax.surgery import Edit, graft, parallel_pairs, replace
from graftax.testing import random_params, tiny_spec

DEMO = Path(__file__).parents[2] / "configs/demo_graft.py"


def demo(*overrides: str) -> DemoConfig:
    return config.build(DemoConfig, config.read(DEMO, overrides))


def test_both_stages_take_writers_and_steps_to_trace() -> None:
    found = demo("distill.writers=tensorboard", "distill.profile=5,8", "finetune.loop.profile=(2,3)")
    assert (found.distill.loop.writers, found.distill.loop.profile) == (("tensorboard",), (5, 8))
    assert (found.finetune.loop.writers, found.finetune.loop.profile) == ((), (2, 3))


def test_a_writer_that_cannot_be_is_refused_with_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"config\.distill: writers: got 'csv'"):
        demo("distill.writers=csv")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"config\.finetune\.loop: writers: 'wandb' needs.*graftax\[wandb\]"):
        demo("finetune.loop.writers=wandb")


def test_inspect_lists_the_parameters_of_files_and_of_published_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "DiT-XL/2", "--params"]) == 0
    out = capsys.readouterr().out
    assert "| blocks[0:28]/mixer/qkv/kernel" in out
    assert out.splitlines()[-1] == "675,129,632 parameters: 675,129,632 kept"
    assert main(["inspect", "DiT-XL/2", "DiT-S/2", "--params"]) == 2
    capsys.readouterr()
    assert main(["inspect", "demo", "--params"]) == 0
    assert capsys.readouterr().out.endswith("3,060,512 parameters: 3,060,512 kept\n")


@pytest.mark.slow
def test_a_fine_tuning_shows_what_it_draws(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = {"images": rng.integers(0, 256, (16, 8, 8, 1), np.uint8), "labels": np.arange(16) % 10}
    np.savez(tmp_path / "set.npz", **pixels)
    settings = demo(
        "finetune.loop.steps=2", "finetune.batch_size=4", "finetune.preview=4", "finetune.loop.writers=tensorboard",
        f"data.source={tmp_path / 'set.npz'}", "data.latents=none", "data.size=8", "data.held_out=0.25",
    )  # fmt: skip
    spec = tiny_spec(in_channels=1, depth=1)
    student = Model(spec, random_params(spec, jax.random.key(0)))
    data, work = images.load(settings.data), tmp_path / "work"
    _, history = stages.run_finetune(student, settings.finetune, data, work, settings.mesh)
    assert np.asarray(Image.open(work / "images/eval_samples_00000002.png")).shape == (8, 4 * 8 + 3 * 2)
    assert history[-1]["split"] == "eval"
    assert "samples" not in history[-1]
    frozen = spec.tokens * spec.width
    assert (work / "parameters.txt").read_text().endswith(f"kept, {frozen:,} frozen\n")


@pytest.mark.parametrize(
    ("edit", "totals"),
    [(replace("blocks[1].mixer", "swa", window=4), "9,408 new"), (parallel_pairs(0, 2), "84,384 kept, 4,656 new")],
)
def test_stage_1_calls_frozen_what_it_leaves_alone(edit: Edit, totals: str) -> None:
    """One mixer of 4 x 48^2 weights and biases; two whole blocks and the projection (2 x 48) x 48 + 48 that joins them."""
    spec = tiny_spec()
    student = graft(Model(spec, random_params(spec, jax.random.key(0))), edit, rng=jax.random.key(0))
    table = table_of(student)
    assert f": {totals}, " in table
    assert table.endswith(" frozen")
