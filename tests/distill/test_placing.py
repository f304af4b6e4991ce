import jax
import pytest

from graftax.backbones.dit import dit_spec
from graftax.distill import DistillConfig, create_state
from graftax.distill.normal_equations import zeros
from graftax.distill.placing import stacked_shardings
from graftax.distill.steps import regression_units
from graftax.models import Meta, Model, param_shapes
from graftax.surgery import parse
from graftax.surgery.report import diff
from graftax.train import MeshConfig
from graftax.train.sharding_report import ShardingReport, sharding_report

MESH = MeshConfig(fsdp=8).abstract()


def laid_out(tree: object) -> ShardingReport:
    places = stacked_shardings(tree, MESH)
    shapes = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)
    return sharding_report(shapes, MESH)


@pytest.mark.parametrize(
    "edit", ["parallel_pairs()", "compose(replace(blocks[1::2].mixer, hyena_x), replace(blocks[0].mlp, mlp(ratio=2.0)))"]
)
def test_scions_and_their_optimisers_are_spread(edit: str) -> None:
    """At DiT-XL/2's width; its 28 blocks in pairs and their optimisers are 8.5 GB."""
    teacher = dit_spec(input_size=32, patch_size=2, hidden_size=1152, depth=4, num_heads=16)
    spec = parse(edit).on(teacher)
    units = regression_units(Model(spec, {}, Meta(sites=tuple(map(str, diff(teacher, spec).sites)))), None)
    state = jax.eval_shape(lambda p: create_state(spec, p, units, DistillConfig()), param_shapes(spec))
    found = laid_out(state)
    assert found.total_bytes > 5e7
    assert found.device_bytes < 0.13 * found.total_bytes
    assert not found.whole
    assert not found.indivisible


def test_sums_of_least_squares_are_spread() -> None:
    sums = jax.eval_shape(lambda: jax.tree.map(lambda leaf: jax.numpy.stack([leaf] * 3), zeros(4608, 1152)))
    assert laid_out(sums).device_bytes < 0.13 * laid_out(sums).total_bytes
