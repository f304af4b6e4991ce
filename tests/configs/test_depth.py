"""The configs of depth: their numbers are true, every argument builds, and they run from search to stage 2 when small."""

import ast
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from stand_in import LENGTH, WIDTH, StandIn, vector

from graftax import api, config
from graftax.backbones.flux import flux_spec
from graftax.backbones.sd3 import sd3_spec
from graftax.checkpoint import save_model
from graftax.data.text.encoding import encode_texts
from graftax.distill.cost import stage1_flops
from graftax.errors import BadInput
from graftax.evaluate.aot import UTILISATION, parse_topology
from graftax.evaluate.drawing import SampleConfig
from graftax.evaluate.synthesis import open_prompts, synthesize
from graftax.models import Model
from graftax.models.cost import count_params, flops, train_flops
from graftax.study.aot import graft_of, named_spec, programs_of
from graftax.study.config import Recipe
from graftax.testing import random_params

CONFIGS = Path(__file__).parents[2] / "configs"
CHIPS = {"flux_depth": "v5p:2x2x2", "sd3_depth": "v5e:2x4"}
NAMES = tuple(CHIPS)
SIZES = {
    "input_size": 8, "in_channels": 4, "hidden_size": 24, "num_heads": 2, "text_width": WIDTH, "text_tokens": LENGTH,
    "pooled_width": WIDTH,
}  # fmt: skip
TINY = {
    "flux_depth": flux_spec(**SIZES, double=4, single=1, guidance=True),
    "sd3_depth": sd3_spec(**SIZES, depth=4, positions=4),
}


def docstring(name):
    return ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text()))


def rows(name):
    lines = docstring(name).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("    argument "))
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines[head:] if line.startswith("    ")]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


@pytest.mark.parametrize("name", NAMES)
def test_names_commands_hardware_and_what_to_expect(name):
    text = docstring(name)
    for verb in ("encode --text", "synthesize", "search", "graft", "distill", "finetune", "sample"):
        assert re.search(rf"^    graftax {verb} ", text, re.MULTILINE), verb
    assert f"Hardware: {CHIPS[name]}" in text
    assert "not run here: no weights" in text.lower()


@pytest.mark.parametrize(("name", "row"), [(name, row) for name in NAMES for row in rows(name)])
def test_rows_agree_with_specs_and_flops(name, row):
    recipe = config.build(Recipe, config.read(f"{CONFIGS / name}.py:{row['argument']}"))
    teacher, student, (unit,) = graft_of(recipe)
    lo, hi = map(int, row["argument"].split(","))
    assert unit.span == tuple(range(lo - 1, hi))
    assert count_params(student) == int(row["parameters"].replace(",", ""))
    assert float(row["faster"]) == pytest.approx(flops(teacher) / flops(student), abs=0.0051)
    first, second, slice_ = recipe.distill, recipe.finetune, parse_topology(CHIPS[name])
    work = [
        first.settings.steps * first.batch_size * stage1_flops(teacher, student, [unit]),
        second.loop.steps * second.batch_size * train_flops(student),
    ]
    hours = [one / (3600 * slice_.size * slice_.chip.flops * UTILISATION) for one in work]
    assert [float(text) for text in row["hours"].split(" + ")] == pytest.approx(hours, abs=0.0051)
    recipe.finetune.check_mesh(recipe.mesh, 8)


def test_flux_lite_is_the_size_that_its_authors_say():
    """12 B parameters to 8 B, 7 GB less in bfloat16 (by their model card)."""
    (row, _), whole = rows("flux_depth"), count_params(named_spec("FLUX.1-dev"))
    gone = whole - int(row["parameters"].replace(",", ""))
    assert 2 * gone / 1e9 == pytest.approx(7, abs=0.6)


def test_the_steps_of_the_recipes():
    for name in NAMES:
        programs, _ = programs_of(config.read(f"{CONFIGS / name}.py"))
        assert [(program.name, program.images) for program in programs[:2]] == [("stage 1", 8), ("stage 2", 64)]
    recipe = config.build(Recipe, config.read(f"{CONFIGS / 'flux_lora'}.py:single[7,20].mlp"))
    _, student, units = graft_of(recipe)
    assert not units
    assert {adapter.path.split("/")[1] for adapter in student.adapters} == {"26", "39"}


@pytest.mark.parametrize("argument", ["0,3", "5", "5,5", "a,b"])
def test_arguments_that_are_no_span_are_refused(argument):
    with pytest.raises(BadInput, match="expected LO,HI, numbers of blocks with 0 < LO < HI"):
        config.read(f"{CONFIGS / 'flux_depth'}.py:{argument}")


# --- On small models ---------------------------------------------------------------------------------------------------

SMALLER = {
    "data.held_out": 0.25, "data.test_subset": 3, "mesh.fsdp": 1, "distill.settings.steps": 2, "distill.batch_size": 2,
    "distill.eval_every": 1, "finetune.loop.steps": 2, "finetune.loop.eval_every": 1, "finetune.batch_size": 4,
    "finetune.accumulate": 2,
}  # fmt: skip


class Pooled(StandIn):
    """All tokens, padding too, and a vector of the whole."""

    def __call__(self, prompts):
        return {"text": super().__call__(prompts)["text"], "pooled": np.stack([vector(prompt) for prompt in prompts])}


def command(name, folder):
    """The config on a small teacher and 12 images that it drew."""
    (folder / "prompts.txt").write_text("\n".join(f"{i} red cats" for i in range(12)))
    encode_texts(folder / "prompts.txt", folder / "text", "stand-in", Pooled)
    spec = TINY[name]
    teacher = Model(spec, random_params(spec, jax.random.key(0)))
    save_model(folder / "teacher", spec, teacher.params, {"source": "test"})
    how = SampleConfig(sampler="euler", steps=2, cfg_scale=1.0, cfg_channels=None, batch_size=12)
    prompts = open_prompts(str(folder / "text"), spec)
    guidance = 3.5 if spec.option("guidance") else None
    synthesize("tiny", teacher, prompts, folder / "drawn", how, guidance=guidance, shard_size=12, preview=0)
    told = {**SMALLER, "teacher": folder / "teacher", "data.source": folder / "drawn", "workdir": folder / "run"}
    return ["--config", f"{CONFIGS / name}.py:1,3", *(f"--config.{key}={value}" for key, value in told.items())]


@pytest.mark.parametrize("name", ["flux_depth", pytest.param("sd3_depth", marks=pytest.mark.slow)])
def test_a_dry_run_says_what_stage_1_would_do(run, name, tmp_path):
    options = command(name, tmp_path)
    assert run("graft", *options)[0] == 0
    code, out, err = run("distill", *options, "--dry-run")
    assert code == 0, err
    assert "stage 1" in out
    assert "pooled float32" in out
    assert not (tmp_path / "run" / "distilled").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_from_search_to_stage_2(run, name, tmp_path):
    options = command(name, tmp_path)
    code, out, err = run("search", *options, "--spans=2", "--images=3")
    assert code == 0, err
    assert re.search(r"^drop\(\d, \d, heal=(before|behind)\)$", out, re.MULTILINE)
    for verb in ("graft", "distill", "finetune"):
        code, out, err = run(verb, *options)
        assert code == 0, err
    models = [api.load(tmp_path / "run" / folder) for folder in ("grafted", "distilled", "finetuned")]
    assert {model.spec.depth for model in models} == {TINY[name].depth - 2}
    first, second = models[0].params["blocks"], models[1].params["blocks"]
    changed = [key for key in first if not jax.tree.all(jax.tree.map(np.array_equal, first[key], second[key]))]
    assert changed == ["00"]
