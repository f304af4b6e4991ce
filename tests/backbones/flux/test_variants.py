"""Published Flux models: exact counts at true size, from shapes alone; the list of them; sizes as config files say them."""

import jax
import pytest

from graftax import config
from graftax.backbones.flux import published, variant
from graftax.backbones.flux.config import FluxConfig
from graftax.backbones.flux.frame import axes_of, default_axes
from graftax.backbones.flux.variants import VARIANTS
from graftax.backbones.flux.zoo import ZOO
from graftax.backbones.zoo import find, spec_of
from graftax.errors import BadInput
from graftax.models import param_shapes
from graftax.models.cost import count_params, count_trainable, flops
from graftax.study.pretrain import FluxPretraining, pretraining_of
from graftax.surgery import replace

COUNTS = {"flux-schnell": 11_891_178_560, "flux-dev": 11_901_408_320}


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_are_exact(name):
    spec = variant(name)
    assert count_params(spec) == count_trainable(spec) == COUNTS[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(param_shapes(spec))) == COUNTS[name]
    assert spec.image_shape == (128, 128, 16)
    assert (spec.sizes.image, spec.sizes.text) == (4096, 512 if name == "flux-dev" else 256)
    assert [block.kind for block in spec.blocks] == ["double"] * 19 + ["single"] * 38
    assert axes_of(spec) == (16, 56, 56)


def test_flops_are_those_that_are_known():
    assert [round(flops(variant(name)) / 1e12, 1) for name in VARIANTS] == [69.5, 74.4]


def test_half_of_the_mixers_as_hyena():
    spec = variant("flux-schnell")
    edited = replace("single[50%].mixer", "hyena_x").on(spec)
    assert sum(block.kind == "single" and block["mixer"].kind == "hyena_x" for block in edited.blocks) == 19
    assert flops(edited) < flops(spec)


def test_the_list_of_models():
    assert {entry.variant for entry in ZOO.values()} == set(VARIANTS)
    for name, entry in ZOO.items():
        spec = entry.spec()
        assert (entry.params, entry.flops) == (count_params(spec), flops(spec))
        assert entry.url == f"https://huggingface.co/black-forest-labs/{name}/resolve/main/{entry.file}.safetensors"
        assert published(f"{entry.file}.safetensors") is published(f"models/{name}/transformer") is published(name) is entry
        assert find(name) is find(f"black-forest-labs/{name}") is entry
        assert spec_of(name) == spec_of(f"black-forest-labs/{name}") == spec_of(entry.variant) == spec
    assert ZOO["FLUX.1-schnell"].licence == "Apache 2.0"
    assert "Non-Commercial" in ZOO["FLUX.1-dev"].licence
    assert published("flux1-fill-dev.safetensors") is None


@pytest.mark.parametrize(
    ("head", "axes"), [(128, (16, 56, 56)), (64, (8, 28, 28)), (16, (4, 6, 6)), (8, (4, 2, 2)), (6, (2, 2, 2))]
)
def test_a_heads_rotary_channels_in_fluxs_proportions(head, axes):
    assert default_axes(head) == axes


SIZES = {
    "input_size": 8, "hidden_size": 16, "double": 1, "single": 2, "num_heads": 2, "text_width": 6, "text_tokens": 3,
    "pooled_width": 4,
}  # fmt: skip


def test_sizes_of_a_training_from_scratch():
    training = {"loop": {"steps": 1}, "batch_size": 2}
    found = pretraining_of(
        {"task": "flux", "workdir": "runs/flux", "model": {**SIZES, "guidance": True}, "training": training}
    )
    assert isinstance(found, FluxPretraining)
    spec = found.model.spec()
    assert (spec.depth, spec.width, spec.option("guidance"), spec.option("channels")) == (3, 16, True, 16)
    assert config.build(FluxConfig, {"variant": "flux-dev"}).spec() == variant("flux-dev")
    with pytest.raises(BadInput, match="model: neither variant nor single; expected one or the other"):
        FluxConfig(**{name: size for name, size in SIZES.items() if name != "single"}).spec()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": 7}, "input_size 7 is not a multiple of patch_size 2"),
        ({"num_heads": 3}, "hidden_size 16 is not a multiple of num_heads 3"),
        ({"text_tokens": 0}, "text_tokens: got 0, expected a positive integer"),
        ({"pooled_width": -1}, "pooled_width: got -1"),
        ({"double": 0, "single": 0}, "double and single: got 0 and 0, expected blocks of either kind"),
        ({"double": -1}, "double and single: got -1 and 2"),
        ({"num_heads": 16}, "rope_axes: got"),
    ],
)
def test_sizes_that_do_not_go_together(change, message):
    with pytest.raises(BadInput, match=message):
        FluxConfig(**{**SIZES, **change}).spec()


def test_names_that_are_none():
    with pytest.raises(BadInput, match=r"variant: got 'flux-pro'.*did you mean 'flux-"):
        variant("flux-pro")
