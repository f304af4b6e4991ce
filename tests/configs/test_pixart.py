"""The config of the paper's text-to-image experiment: every argument builds, by shapes alone, and its numbers are true."""

import ast
import functools
import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from stand_in import LENGTH, WIDTH, StandIn

from graftax import api, config
from graftax.backbones.pixart import pixart_spec
from graftax.checkpoint import save_model
from graftax.data.text.encoding import encode_texts
from graftax.distill.cost import stage1_flops
from graftax.errors import BadInput
from graftax.evaluate.aot import UTILISATION, parse_topology
from graftax.evaluate.drawing import SampleConfig
from graftax.evaluate.synthesis import open_prompts, synthesize
from graftax.models import Model, init, param_shapes
from graftax.models.cost import count_params, flops, train_flops
from graftax.study.aot import graft_of, named_spec, programs_of
from graftax.study.config import Recipe
from graftax.surgery import parse
from graftax.surgery.check import leaves_by_path
from graftax.train.state import split

FILE = Path(__file__).parents[2] / "configs" / "pixart.py"
DOCSTRING = ast.get_docstring(ast.parse(FILE.read_text()))
OPERATORS = ("hyena_x", "hyena_se", "hyena_y", "hyena_2d", "hyena_long", "swa", "swa_2d", "mamba2", "linear", "clear", "sla")
SIZES = (256, 512, 1024, 2048)
GRAFTED = (8, 10, 12, 14, 16, 18, 20, 21, 22, 23, 24, 25, 26, 27)
CHIPS = {"hours on v5e": "v5e:2x4", "hours on v6e": "v6e:2x4"}


def table():
    """Rows {column: cell} of the docstring's table."""
    lines = DOCSTRING.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("    argument "))
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines[head:] if line.startswith("    ")]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


ROWS = table()


def recipe_of(argument):
    return config.build(Recipe, config.read(f"{FILE}:{argument}"))


@functools.cache
def grafted(argument):
    return graft_of(recipe_of(argument))


def test_names_commands_hardware_and_what_to_expect():
    compiled = [f"bench --aot {chips}" for chips in CHIPS.values()]
    for verb in ("encode --text", "synthesize", "graft", "distill", "finetune", "geneval", *compiled):
        assert re.search(rf"^    graftax {verb} ", DOCSTRING, re.MULTILINE), verb
    flowing = re.sub(r"\s+", " ", DOCSTRING)
    for words in ("arXiv 2506.05340", "Hardware: v5e-8 or v6e-8", "Expect what the paper reports; not run here", "1.43 x"):
        assert words in flowing


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_argument_is_a_recipe_on_its_teacher(operator, size):
    recipe = recipe_of(f"{operator},{size}")
    teacher = named_spec(recipe.teacher)
    assert (teacher.image_shape[0], teacher.option("interpolation"), teacher.depth) == (size // 8, size / 512, 28)
    student = parse(recipe.graft.edits[0]).on(teacher)
    assert tuple(i for i, block in enumerate(student.blocks) if block["mixer"].kind == operator) == GRAFTED
    assert (recipe.data.source, recipe.data.latents) == (f"drawn_{size}", "given")
    assert (recipe.distill_data.subset, recipe.data.subset) == ("8k", "12k")
    recipe.mesh.check(8, recipe.distill.batch_size)
    recipe.finetune.check_mesh(recipe.mesh, 8)


@pytest.mark.parametrize("row", ROWS, ids=[row["argument"] for row in ROWS])
def test_rows_agree_with_specs_and_flops(row):
    recipe, (teacher, student, units) = recipe_of(row["argument"]), grafted(row["argument"])
    assert tuple(unit.block for unit in units) == GRAFTED
    assert count_params(student.replace(adapters=())) == int(row["parameters"].replace(",", ""))
    assert float(row["faster"]) == pytest.approx(flops(teacher) / flops(student), abs=0.0051)
    first, second = recipe.distill, recipe.finetune
    work = [
        first.settings.steps * first.batch_size * stage1_flops(teacher, student, units),
        second.loop.steps * second.batch_size * train_flops(student),
    ]
    for column, chips in CHIPS.items():
        slice_ = parse_topology(chips)
        hours = [one / (3600 * slice_.size * slice_.chip.flops * UTILISATION) for one in work]
        assert [float(text) for text in row[column].split(" + ")] == pytest.approx(hours, abs=0.0051)


def test_the_table_has_the_papers_row_and_every_operator():
    assert {row["argument"] for row in ROWS} == {f"{kind},2048" for kind in OPERATORS} | {f"hyena_x,{n}" for n in SIZES}
    assert {row["argument"]: row["GenEval"] for row in ROWS if row["GenEval"] != "-"} == {"hyena_x,2048": "47.78"}


def test_stage_2_trains_adapters_of_rank_64_on_every_product_of_the_blocks_alone():
    recipe, (_, student, _) = recipe_of("hyena_x,2048"), grafted("hyena_x,2048")
    assert {(adapter.rank, adapter.alpha) for adapter in student.adapters} == {(64, 64.0)}
    shapes = param_shapes(student)
    kernels = {path for path, leaf in leaves_by_path(shapes["blocks"]).items() if leaf.ndim == 2 and "kernel" in path}
    matrices = {f"blocks/{path}" for path in kernels if "filter" not in path}
    assert {adapter.path for adapter in student.adapters} == matrices
    trained, _ = split(shapes, recipe.finetune.frozen_in(student))
    assert set(trained) == {"lora"}
    assert len(jax.tree.leaves(trained)) == 2 * len(matrices) == 2 * 28 * 7


def test_its_steps_are_two_stages_and_sampling_as_pixart_draws():
    programs, _ = programs_of(config.read(f"{FILE}:hyena_x,2048"))
    assert [(program.name, program.images, program.pieces) for program in programs] == [
        ("stage 1", 8, 1), ("stage 2", 64, 8), ("sampling", 8, 1),
    ]  # fmt: skip
    _, student, _ = grafted("hyena_x,2048")
    assert programs[-1].flops == 8 * 20 * 2 * flops(student)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("hyen_x,2048", "got 'hyen_x,2048', expected OPERATOR,SIZE with OPERATOR one of"),
        ("hyen_x,2048", "did you mean 'hyena_x'?"),
        ("hyena_x,2084", "SIZE one of ['256', '512', '1024', '2048']; did you mean '2048'?"),
        ("hyena_x", "expected OPERATOR,SIZE with SIZE one of"),
    ],
)
def test_arguments_that_name_no_row_are_refused(argument, message):
    with pytest.raises(BadInput, match=re.escape(message)) as refused:
        config.read(f"{FILE}:{argument}")
    assert "\n" not in str(refused.value)


# --- Long ----------------------------------------------------------------------------------------------------------------

SMALLER = {
    "data.subset": 8, "distill_subset": 6, "data.held_out": 0.2, "data.test_subset": 2, "mesh.fsdp": 1,
    "distill.settings.steps": 2, "distill.settings.plan": "auto", "distill.batch_size": 2, "distill.eval_every": 1,
    "finetune.loop.steps": 2, "finetune.loop.eval_every": 1, "finetune.batch_size": 4, "finetune.accumulate": 2,
}  # fmt: skip


@pytest.fixture
def world(tmp_path):
    """Overrides that run the config at 256 pixels on a teacher of 16 tokens and 12 images that it drew of captions."""
    (tmp_path / "prompts.txt").write_text("\n".join(f"{i} red cats" for i in range(12)))
    encode_texts(tmp_path / "prompts.txt", tmp_path / "text", "stand-in", StandIn)
    spec = pixart_spec(
        input_size=8, patch_size=2, hidden_size=72, depth=28, num_heads=2, text_width=WIDTH, text_tokens=LENGTH,
        null_tokens=LENGTH,
    )  # fmt: skip
    teacher = Model(spec, init(spec, jax.random.key(0)))
    save_model(tmp_path / "teacher", spec, teacher.params, {"source": "test"})
    prompts, how = open_prompts(str(tmp_path / "text"), spec), SampleConfig(steps=2, batch_size=12)
    synthesize("tiny", teacher, prompts, tmp_path / "drawn", how, shard_size=12, preview=0)
    told = {**SMALLER, "teacher": tmp_path / "teacher", "data.source": tmp_path / "drawn", "workdir": tmp_path / "run"}
    return [f"--config.{key}={value}" for key, value in told.items()]


@pytest.mark.slow
def test_both_stages_run_on_a_small_teacher(run, world, tmp_path):
    command = ("--config", f"{FILE}:hyena_x,256", *world)
    for verb in ("graft", "distill", "finetune"):
        if verb != "graft":
            code, out, err = run(verb, *command, "--dry-run")
            assert code == 0, err
            assert "text float32" in out
        code, _, err = run(verb, *command)
        assert code == 0, err
    states = [leaves_by_path(api.load(tmp_path / "run" / name).params) for name in ("grafted", "distilled", "finetuned")]
    first, second = ({path for path in a if not np.array_equal(a[path], b[path])} for a, b in itertools.pairwise(states))
    assert {path.split("/")[1] for path in first} == {f"{i:02}" for i in GRAFTED}
    assert all(path.split("/")[2] == "mixer" for path in first)
    assert second
    assert all(path.startswith("lora/") for path in second)
    assert run("convert", tmp_path / "run" / "finetuned", tmp_path / "student", "--merge-lora")[0] == 0
    assert not api.load(tmp_path / "student").spec.adapters
