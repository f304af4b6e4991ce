"""The config of the recipes since DiT: every row builds, by shapes alone, and its numbers are true."""

import ast
import functools
import re
from pathlib import Path

import pytest

from graftax import config
from graftax.errors import BadInput
from graftax.evaluate.aot import UTILISATION, parse_topology
from graftax.models.cost import count_params, flops, train_flops
from graftax.study.aot import programs_of
from graftax.study.pretrain import pretraining_of
from graftax.train.recipes import Recipe

FILE = Path(__file__).parents[2] / "configs" / "modern.py"
DOCSTRING = ast.get_docstring(ast.parse(FILE.read_text()))
CHIPS = {"hours on v5e": "v5e:2x4", "hours on v6e": "v6e:4x4"}


def table():
    """Rows {column: cell} of the docstring's table."""
    lines = DOCSTRING.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("    argument "))
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines[head:] if line.startswith("    ")]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[1:]}


ROWS = table()


@functools.cache
def training_of(argument):
    return pretraining_of(config.read(f"{FILE}:{argument}"))


def test_names_commands_hardware_and_what_to_expect():
    compiled = [f"bench --aot {chips}" for chips in CHIPS.values()]
    for verb in ("encode", "train", "sample", *compiled):
        assert re.search(rf"^    graftax {verb} ", DOCSTRING, re.MULTILINE), verb
    flowing = re.sub(r"\s+", " ", DOCSTRING)
    for words in ("Hardware: v5e-8 or v6e-16", "Expect what the papers report", "not run here"):
        assert words in flowing


@pytest.mark.parametrize("argument", ROWS)
def test_rows_agree_with_specs_and_flops(argument):
    row, training = ROWS[argument], training_of(argument).training
    spec, recipe = training_of(argument).model.spec(), Recipe.parse(training.recipe)
    recipe.check(spec, training.batch_size)
    assert count_params(spec) == int(row["parameters"].replace(",", ""))
    work = train_flops(spec, recipe.policy)
    if argument.startswith("sra"):  # the averaged model's first 20 blocks
        work += flops(spec.replace(program=spec.program[:20]), head=False)
    training_of(argument).mesh.check(16, training.batch_size // training.accumulate)
    for column, chips in CHIPS.items():
        topology = parse_topology(chips)
        hours = training.loop.steps * training.batch_size * work / (3600 * topology.size * topology.chip.flops * UTILISATION)
        assert float(row[column]) == pytest.approx(hours, abs=0.0051)


def test_routes_take_the_published_share():
    plain, routed = training_of("sit,400k,16"), training_of("sit_tread,400k,16")
    spec = plain.model.spec()
    share = train_flops(spec, Recipe.parse(routed.training.recipe).policy) / train_flops(spec)
    assert share == pytest.approx(0.583, abs=5e-4)


def test_hyperparameters_are_the_papers():
    for argument in ROWS:
        training = training_of(argument).training
        batch = 1024 if argument.startswith("maskdit") else 256
        assert (training.batch_size, training.optimiser.learning_rate) == (batch, 1e-4)
        assert (training.ema_decay, training.class_dropout, training.optimiser.warmup_steps) == (0.9999, 0.1, 0)
    assert training_of("sit,400k,16").training.optimiser.grad_clip is None
    assert training_of("repa,400k,16").training.optimiser.grad_clip == 1
    assert training_of("dispersive,400k,16").training.optimiser.b2 == 0.95
    assert training_of("repa,400k,16").data.features
    assert training_of("sit,400k,16").data.transform == "flip"
    loss = Recipe.parse(training_of("repa,4m,16").training.recipe).losses[0]
    assert (loss.block, loss.hidden, loss.weight, loss.source.width) == (8, (2048, 2048), 0.5, 768)
    faded = Recipe.parse(training_of("sra,4m,16").training.recipe).losses[0]
    assert (faded.block, faded.source.block, faded.source.back, faded.weight) == (8, 20, 0.2, 0.2)
    assert faded.fade == (149 * 5004, 1000 * 5004)


def test_steps_to_compile_ahead_of_time():
    steps, mesh = programs_of(config.read(f"{FILE}:repa_tread,400k,8"))
    assert [step.name for step in steps] == ["train", "sampling"]
    assert mesh.fsdp == 8


@pytest.mark.parametrize("argument", ["sit,1k,16", "sit,400k", "sit,400k,0", "dit,400k,16", "sit,400k,16,1"])
def test_other_arguments_are_refused(argument):
    with pytest.raises(BadInput, match="expected RECIPE,STEPS,CHIPS"):
        config.read(f"{FILE}:{argument}")
