"""The configs of the paper's experiments: they parse, say how to run them and what to expect, and their numbers are true."""

import ast
import functools
import re
from pathlib import Path

import pytest

from graftax import config
from graftax.backbones.dit.zoo import ZOO
from graftax.distill.cost import stage1_flops
from graftax.errors import BadInput
from graftax.evaluate.aot import UTILISATION, parse_topology
from graftax.models.cost import count_params, train_flops
from graftax.study.aot import graft_of, named_spec
from graftax.study.config import Recipe
from graftax.surgery.select import select

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = ("grafting", "self_grafting", "regression_objective", "parallel_pairs")
CHIPS = {"v5e-8": "v5e:2x4", "v4-32": "v4:2x2x4", "v6e-16": "v6e:4x4"}
"""The machines that the files name, by Google's names for them; v4's count cores, two per chip."""

TEACHER = "DiT-XL-2-256x256"
SELF_GRAFTED = {"dit-xl2-mha-mha-100p-fid2.49": "mha,10%", "dit-xl2-mlp-mlp_r_4-100p-fid2.54": "mlp,10%"}


def docstring(family):
    return ast.get_docstring(ast.parse((CONFIGS / f"{family}.py").read_text()))


def table(family):
    """Rows {column: cell} of the table in a file's docstring."""
    lines = docstring(family).splitlines()
    head = next(i for i, line in enumerate(lines) if re.match(r" {4,}(argument|pairs) .*FID", line))
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines[head:] if line.startswith("    ")]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


@functools.cache
def recipe_of(family, argument=None):
    name = CONFIGS / f"{family}.py"
    return config.build(Recipe, config.read(name if argument is None else f"{name}:{argument}"))


@functools.cache
def grafted(family, argument=None):
    return graft_of(recipe_of(family, argument))


ROWS = [(family, row) for family in FAMILIES for row in table(family)]


def flops_per_hour(family):
    """Of the machine that the file names."""
    chips = re.search(r"Hardware: (v\w+-\d+)", docstring(family))[1]
    topology = parse_topology(CHIPS[chips])
    return 3600 * topology.size * topology.chip.flops * UTILISATION


@pytest.mark.parametrize("family", FAMILIES)
def test_names_commands_hardware_and_what_to_expect(family):
    text = docstring(family)
    for verb in ("graft", "distill", "sample", "bench --aot"):
        assert re.search(rf"^    graftax {verb} .*{family}", text, re.MULTILINE), verb
    assert f"bench --aot {CHIPS[re.search(r'Hardware: (v[^ ,.]+)', text)[1]]} " in text
    flowing = re.sub(r"\s+", " ", text)
    assert "Expect what the paper reports" in flowing
    assert "not run here" in flowing
    assert "arXiv 2506.05340" in text


def test_each_row_stands_once():
    names = [(family, row.get("argument"), row.get("folder")) for family, row in ROWS]
    assert len(set(names)) == len(names) == 28 + 7 + 6 + 1


@pytest.mark.parametrize(("family", "row"), ROWS, ids=[f"{family}:{row.get('argument', '')}" for family, row in ROWS])
def test_rows_agree_with_specs_and_flops(family, row):
    recipe = recipe_of(family, row.get("argument"))
    teacher, student, units = grafted(family, row.get("argument"))
    assert count_params(student) == int(row["parameters"].replace(",", ""))
    assert len(units) == int(row.get("sites") or row["pairs"])
    first, second = recipe.distill, recipe.finetune
    flops = [
        first.settings.steps * first.batch_size * stage1_flops(teacher, student, units),
        second.loop.steps * second.batch_size * train_flops(student),
    ]
    done = {"grafted": 0, "distilled": 1}.get(row.get("folder"), 2)
    told = [float(text) for text in row["hours"].split(" + ")]
    hours = [one / flops_per_hour(family) if i < done else 0 for i, one in enumerate(flops)]
    assert told == pytest.approx(hours[: len(told)], abs=0.0051)


@pytest.mark.parametrize("family", FAMILIES)
def test_hyperparameters_are_the_papers(family):
    recipe = recipe_of(family)
    text = re.sub(r"\s+", " ", docstring(family))
    stage1, stage2 = recipe.distill, recipe.finetune
    assert (stage1.settings.steps * stage1.batch_size, stage1.batch_size) == (200 * 8000, 64)
    assert f"{stage1.settings.steps:,} steps" in text
    assert (stage1.settings.learning_rate, stage1.settings.schedule, stage1.settings.grad_clip) == (1e-4, "paper", 10.0)
    assert recipe.distill_data.subset == "8k"
    assert (stage2.batch_size, stage2.ema_decay, stage2.class_dropout) == (256, 0.9999, 0.1)
    assert (stage2.optimiser.learning_rate, stage2.optimiser.warmup_steps) == (1e-4, 1000)
    if family != "regression_objective":  # which has no stage 2
        assert f"{stage2.loop.steps:,} " in text
        assert stage2.loop.steps == {"grafting": 50_000, "self_grafting": 30_000, "parallel_pairs": 200_000}[family]
    assert named_spec(recipe.teacher) == ZOO[TEACHER].spec()


def test_operators_and_scores_are_those_of_the_published_models():
    published = {entry.spec(): entry for entry in ZOO.values() if entry.operator and "ablation" not in entry.name}
    compared = []
    for row in table("grafting"):
        _, student, _ = grafted("grafting", row["argument"])
        entry = published.get(student)
        if entry and row["argument"].count(",") == 1:  # those at 20 % have other scores
            compared.append(entry)
            told = [float(row[column]) for column in ("FID", "IS", "sFID", "precision", "recall")]
            assert told == list(vars(entry.scores).values())
    assert set(compared) == set(published.values()) - {ZOO[name] for name in SELF_GRAFTED}
    for name, argument in SELF_GRAFTED.items():
        row = next(row for row in table("self_grafting") if (row["argument"], row["folder"]) == (argument, "finetuned"))
        assert [float(row[column]) for column in ("FID", "IS")] == [ZOO[name].scores.fid, ZOO[name].scores.inception_score]


def test_shares_of_the_data():
    assert recipe_of("grafting", "swa,50,20%").data.subset == "20%"
    assert recipe_of("grafting", "swa,50").data.subset == "10%"
    assert recipe_of("self_grafting", "mha,0.63%").data.subset == "0.63%"
    assert recipe_of("parallel_pairs").data.subset == "25%"


def test_the_regression_losses_reach_their_sites():
    recipe = recipe_of("regression_objective", "mlp,huber")
    assert recipe.distill.settings.mlp_loss == "huber"
    _, student, units = grafted("regression_objective", "mlp,huber")
    assert units == select("blocks[0,7,16,26,27].mlp", student)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("grafting.py:hyena_q,50", "got 'hyena_q,50', expected OPERATOR,BLOCKS"),
        ("grafting.py:hyena_x,60", "expected OPERATOR,BLOCKS"),
        ("self_grafting.py:mha", "expected OPERATOR,SHARE"),
        ("regression_objective.py:mha,l3", "expected OPERATOR,LOSS"),
        ("parallel_pairs.py:28", "takes no argument, got '28'"),
    ],
)
def test_arguments_that_name_no_row_are_refused(name, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        config.read(CONFIGS / name)
