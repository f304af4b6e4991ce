"""Published PixArts: exact counts at true size, from shapes alone; the list of them."""

import jax
import pytest

from graftax.backbones.pixart import pixart_spec, published, variant
from graftax.backbones.pixart.variants import VARIANTS
from graftax.backbones.pixart.zoo import ZOO
from graftax.backbones.zoo import find, spec_of
from graftax.errors import BadInput
from graftax.models import param_shapes
from graftax.models.cost import count_params, count_trainable, flops
from graftax.spec import op

TRAINED = 610_856_096
"""Parameters of an XL/2 without conditions on size, its null caption not counted."""


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_are_exact(name):
    spec = variant(name)
    sized = 611_349_152 if name == "pixart-alpha-1024" else TRAINED
    tokens = 300 if "sigma" in name else 120
    assert count_trainable(spec) == sized
    assert count_params(spec) == sized + 4096 * tokens
    assert sum(leaf.size for leaf in jax.tree.leaves(param_shapes(spec))) == count_params(spec)
    side = int(name.split("-")[2])
    assert spec.image_shape == (side // 8, side // 8, 4)
    assert spec.sizes.image == (side // 16) ** 2


def test_positions_are_interpolated_as_published():
    scales = {name: variant(name).option("interpolation") for name in VARIANTS}
    assert [scales[f"pixart-sigma-{side}"] for side in (256, 512, 1024, 2048)] == [0.5, 1, 2, 4]
    assert [scales[f"pixart-alpha-{side}"] for side in (256, 512, 1024)] == [1, 1, 2]


def test_the_list_of_models():
    assert len(ZOO) == len(VARIANTS)
    for name, entry in ZOO.items():
        spec = entry.spec()
        assert spec == variant(entry.variant)
        assert (entry.params, entry.flops) == (count_params(spec), flops(spec))
        assert entry.url.startswith("https://huggingface.co/PixArt-alpha/PixArt-")
        assert entry.url.endswith(f"/{name}.pth")
        assert "Open RAIL++-M" in entry.licence
        assert published(f"{name}.pth") is published(f"models/{name}/transformer") is find(f"PixArt-alpha/{name}") is entry
        assert spec_of(name) == spec_of(entry.variant) == spec
    assert published("PixArt-Sigma-XL-2-4K-MS") is None
    with pytest.raises(BadInput, match="nearest are PixArt-Sigma-XL-2-2K-MS"):
        find("Sigma-XL-2-2K")


def test_names_and_sizes_that_are_none():
    with pytest.raises(BadInput, match=r"variant: got 'pixart-sigma-4096'.*did you mean 'pixart-sigma-"):
        variant("pixart-sigma-4096")
    sizes = {"input_size": 8, "patch_size": 2, "hidden_size": 24, "depth": 1, "num_heads": 3}
    for change, message in (
        ({"input_size": 7}, "input_size 7 is not a multiple of patch_size 2"),
        ({"num_heads": 5}, "hidden_size 24 is not a multiple of num_heads 5"),
        ({"text_tokens": 0}, "text_tokens: got 0, expected a positive integer"),
        ({"mixer": op("mlp")}, "operator 'mlp' has the role channel"),
    ):
        with pytest.raises(BadInput, match=message):
            pixart_spec(**{**sizes, **change})
