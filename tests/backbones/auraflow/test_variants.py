"""Published AuraFlows: exact counts at true size, from shapes alone; the list of them."""

import jax
import pytest

from graftax.backbones.auraflow import auraflow_spec, published, variant
from graftax.backbones.auraflow.variants import VARIANTS, hidden_width
from graftax.backbones.auraflow.zoo import ZOO
from graftax.backbones.zoo import find, spec_of
from graftax.errors import BadInput
from graftax.models import param_shapes
from graftax.models.cost import block_cost, count_params, count_trainable, flops

COUNTS = {"auraflow-0.2": 6_842_876_928, "auraflow-0.3": 6_858_605_568}


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_are_exact(name):
    spec = variant(name)
    assert count_params(spec) == count_trainable(spec) == COUNTS[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(param_shapes(spec))) == COUNTS[name]
    assert (spec.image_shape, spec.sizes.text, spec.sizes.head_dim) == ((128, 128, 4), 264, 256)
    joint, single = (block_cost(spec, [i])[0] for i in (0, 4))
    assert (joint, single) == (339_738_624, 169_869_312)
    assert 43.9e12 < flops(spec) < 44.1e12


def test_hidden_widths():
    assert [hidden_width(width) for width in (3072, 16, 96, 97, 1152)] == [8192, 256, 256, 512, 3072]


def test_the_list_of_models():
    assert len(ZOO) == len(VARIANTS)
    for name, entry in ZOO.items():
        spec = entry.spec()
        assert (entry.params, entry.flops) == (count_params(spec), flops(spec))
        assert entry.url == f"https://huggingface.co/fal/{name}/resolve/main/{entry.file}.safetensors"
        assert "Apache-2.0" in entry.licence
        assert (
            published(f"{entry.file}.safetensors") is published(f"models/{name}/transformer") is find(f"fal/{name}") is entry
        )
        assert spec_of(name) == spec_of(entry.variant) == spec_of(f"fal/{name}") == spec
    assert published("AuraFlow-v0.9") is None
    with pytest.raises(BadInput, match=r"nearest are AuraFlow-v0\.[23]"):
        find("AuraFlow")


def test_names_and_sizes_that_are_none():
    with pytest.raises(BadInput, match=r"variant: got 'auraflow-0.4'.*did you mean 'auraflow-0"):
        variant("auraflow-0.4")
    sizes = {"input_size": 8, "joint": 1, "single": 1, "hidden_size": 24, "num_heads": 3, "positions": 16}
    for change, message in (
        ({"input_size": 7}, "input_size 7 is not a multiple of patch_size 2"),
        ({"num_heads": 5}, "hidden_size 24 is not a multiple of num_heads 5"),
        ({"registers": 0}, "registers: got 0, expected a positive integer"),
        ({"joint": 0, "single": 0}, "depth: got 0, expected a positive integer"),
    ):
        with pytest.raises(BadInput, match=message):
            auraflow_spec(**{**sizes, **change})
