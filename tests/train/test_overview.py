from pathlib import Path

import jax
import pytest

import graftax
from graftax.errors import BadInput
from graftax.models import Model, param_shapes
from graftax.surgery.select import select
from graftax.testing import random_params, tiny_spec
from graftax.train.overview import parameter_table, write_parameters


@pytest.fixture(scope="module")
def student() -> Model:
    spec = tiny_spec(depth=2)
    model = Model(spec, random_params(spec, jax.random.key(1)))
    return graftax.graft(model, graftax.replace("blocks[1].mixer", "swa", window=4), rng=jax.random.key(0))


def scions(student: Model) -> list[str]:
    return [site.path(student.spec) for site in select(student.meta.sites, student.spec)]


def statuses(table: str) -> dict[str, str]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return {row[0]: row[4] for row in cells[1:]}


def test_scions_are_new_frozen_leaves_frozen_the_rest_kept(student: Model) -> None:
    found = statuses(parameter_table(student.params, scions(student), ("pos_embed", "final")))
    assert found["blocks[1]/mixer/qkv/kernel"] == "new"
    assert found["pos_embed"] == found["final/linear/kernel"] == "frozen"
    assert found["x_embedder/kernel"] == "kept"
    assert "new" in set(statuses(parameter_table(student.params, None)).values())


def test_every_parameter_is_counted_once(student: Model, tmp_path: Path) -> None:
    total = sum(leaf.size for leaf in jax.tree.leaves(student.params))
    table = parameter_table(student.params, scions(student))
    assert table.splitlines()[-1].startswith(f"{total:,} parameters: ")
    counts = [line.split("|")[4] for line in table.splitlines() if line.startswith("| ")][1:]
    assert sum(int(count.replace(",", "")) for count in counts) == total
    write_parameters(tmp_path / "run", table)
    assert (tmp_path / "run/parameters.txt").read_text() == table + "\n"


def test_blocks_that_are_alike_share_a_line_and_shapes_do(student: Model) -> None:
    shapes = param_shapes(student.spec)
    assert statuses(parameter_table(shapes)).keys() >= {"blocks[0,1]/mlp/fc1/bias", "blocks[0,1]/mixer/qkv/bias"}


def test_patterns_that_match_nothing_are_refused(student: Model) -> None:
    with pytest.raises(BadInput, match="frozen"):
        parameter_table(student.params, frozen=("no_such_leaf",))
