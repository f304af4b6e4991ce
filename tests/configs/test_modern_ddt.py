"""The recipes of modern models at their true size: numbers of their tables follow from specs and FLOPs."""

import ast
import re
from pathlib import Path

import pytest

from graftax import config
from graftax.evaluate.aot import UTILISATION, parse_topology
from graftax.models.cost import count_params, train_flops
from graftax.study.pretrain import pretraining_of

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = ("modern_lightningdit", "modern_ddt")


def rows(family):
    lines = ast.get_docstring(ast.parse((CONFIGS / f"{family}.py").read_text())).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("    argument "))
    return [re.split(r"\s{2,}", line.strip()) for line in lines[head + 1 :] if line.startswith("    ")]


@pytest.mark.parametrize(("family", "row"), [(family, row) for family in FAMILIES for row in rows(family)])
def test_tables(family, row):
    argument, parameters, steps, hours, *_ = row
    recipe = pretraining_of(config.read(f"{CONFIGS / family}.py:{argument}"))
    spec, stage, slice_ = recipe.model.spec(), recipe.training, parse_topology("v6e:4x4")
    assert (f"{count_params(spec):,}", f"{stage.loop.steps:,}") == (parameters, steps)
    flops = stage.loop.steps * stage.batch_size * train_flops(spec)
    assert float(hours) == pytest.approx(flops / (3600 * slice_.size * slice_.chip.flops * UTILISATION), abs=0.006)
    recipe.mesh.check(slice_.size, stage.batch_size // stage.accumulate)
    assert stage.times == "logit_normal(0, 1)"


@pytest.mark.parametrize("argument", ["65,16", "64", "64,0"])
def test_arguments_that_are_none(argument):
    with pytest.raises(ValueError, match="expected EPOCHS,CHIPS"):
        config.read(f"{CONFIGS / FAMILIES[0]}.py:{argument}")
