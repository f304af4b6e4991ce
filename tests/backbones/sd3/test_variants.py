"""Published SD3s: exact counts at true size, from shapes alone; the list of them."""

import jax
import pytest

from graftax.backbones.sd3 import published, sd3_spec, variant
from graftax.backbones.sd3.variants import VARIANTS
from graftax.backbones.sd3.zoo import ZOO
from graftax.backbones.zoo import find, spec_of
from graftax.errors import BadInput
from graftax.models import param_shapes
from graftax.models.cost import count_params, count_trainable, flops

COUNTS = {"sd3-medium": 2_028_328_000, "sd3.5-medium": 2_243_171_520, "sd3.5-large": 8_056_627_520}
"""Parameters of diffusers' modules on the meta device, the table of positions not counted."""

TABLES = {"sd3-medium": 192**2 * 1536, "sd3.5-medium": 384**2 * 1536, "sd3.5-large": 192**2 * 2432}


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_are_exact(name):
    spec = variant(name)
    assert count_trainable(spec) == COUNTS[name]
    assert count_params(spec) == COUNTS[name] + TABLES[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(param_shapes(spec))) == count_params(spec)
    assert (spec.image_shape, spec.tokens, spec.sizes.text) == ((128, 128, 16), 4096, 333)
    assert spec.sizes.head_dim == 64


def test_kinds_of_blocks():
    kinds = {name: [block.kind for block in variant(name).blocks] for name in VARIANTS}
    assert kinds["sd3-medium"] == ["sd3"] * 23 + ["sd3_last"]
    assert kinds["sd3.5-medium"] == ["sd3_dual"] * 13 + ["sd3"] * 10 + ["sd3_last"]
    assert kinds["sd3.5-large"] == ["sd3"] * 37 + ["sd3_last"]
    norms = [variant(name).blocks[-1]["attn"].option("qk_norm") for name in VARIANTS]
    assert norms == ["none", "rms", "rms"]


def test_the_list_of_models():
    assert len(ZOO) == len(VARIANTS)
    for name, entry in ZOO.items():
        spec = entry.spec()
        assert spec == variant(entry.variant)
        assert (entry.params, entry.flops) == (count_params(spec), flops(spec))
        assert entry.url.startswith("https://huggingface.co/stabilityai/stable-diffusion-3")
        assert entry.url.endswith(f"/{name}.safetensors")
        assert "Community License" in entry.licence
        assert published(f"{name}.safetensors") is published(f"models/{entry.folder}/transformer") is entry
        assert find(name) is find(f"stabilityai/{entry.folder}") is entry
        assert spec_of(name) == spec_of(entry.variant) == spec_of(f"stabilityai/{entry.folder}") == spec
    assert published("sd4_medium.safetensors") is None
    with pytest.raises(BadInput, match=r"nearest are sd3\.5_large"):
        find("sd3.5_larg")


def test_names_and_sizes_that_are_none():
    with pytest.raises(BadInput, match=r"variant: got 'sd3.5-medum'.*did you mean 'sd3.5-medium'"):
        variant("sd3.5-medum")
    sizes = {"input_size": 8, "hidden_size": 24, "depth": 3, "num_heads": 2}
    for change, message in (
        ({"input_size": 7}, "input_size 7 is not a multiple of patch_size 2"),
        ({"num_heads": 5}, "hidden_size 24 is not a multiple of num_heads 5"),
        ({"pooled_width": 0}, "pooled_width: got 0, expected a positive integer"),
        ({"dual_attention": (0, 2)}, r"dual_attention: got \[0, 2\], expected blocks 0..1, not the last"),
        ({"qk_norm": "layer"}, "qk_norm: got 'layer', expected one of"),
    ):
        with pytest.raises(BadInput, match=message):
            sd3_spec(**{**sizes, **change})
