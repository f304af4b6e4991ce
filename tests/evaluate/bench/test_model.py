"""A published model beside its grafts, in small: columns as documented."""

import pytest

from graftax.backbones.zoo import spec_of
from graftax.errors import BadInput
from graftax.evaluate.bench import bench_model
from graftax.models.cost import count_params


@pytest.mark.slow
def test_rows():
    published, grafted = bench_model("DiT-S/8", ("blocks[50%].mixer=hyena_x(kernel=4)",), rounds=2)
    assert published.keys() == grafted.keys()
    assert published["faster"] == published["flops_ratio"] == 1
    assert grafted["flops_ratio"] == published["tflop"] / grafted["tflop"]
    assert grafted["forward_s"] > 0
    assert grafted["temp_mb"] > 0
    assert published["parameters"] == count_params(spec_of("DiT-S/8"))


def test_unknown_models_and_edits_are_refused():
    with pytest.raises(BadInput, match=r"bench model 'DiT-S/9': not known, .*did you mean 'DiT-S/"):
        bench_model("DiT-S/9")
