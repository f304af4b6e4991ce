"""Joint 2-D Hyena: its definition on the grid and along the text, what it takes over, cost."""

import jax
import numpy as np
import pytest
from joint_oracle import SIZES, STREAMS, assert_counted, assert_defined, built, gated_2d

from graftax import ops
from graftax.errors import BadInput
from graftax.ops.base import call
from graftax.spec import op
from graftax.testing import assert_same_leaves


@pytest.mark.parametrize("options", [{}, {"kernel": 5, "bias": "none"}, {"kernel": 1, "bias": "in", "text_out": False}])
def test_equals_the_definition(options):
    operator, params = built("joint_hyena_2d", **options)
    assert params["grid_filter"]["kernel"].shape == (options.get("kernel", 3),) * 2 + (1, 36)

    def mix(*parts):
        u = np.concatenate([part.reshape(2, 11, 12) for part in parts], axis=-1)
        return gated_2d(u, params["short_filter"], params["grid_filter"])

    assert_defined(operator, params, "none", mix)


def test_what_reaches_what():
    """A word reaches words behind it, and by the mean all of the image; an image token its neighbours, and all words."""
    operator, params = built("joint_hyena_2d")
    run = jax.jit(lambda streams: call(operator, params, streams))
    before = run(STREAMS)
    for stream, reached in (("txt", [3, 4]), ("img", [0, 1, 3, 4])):
        changed = {name: np.array(x) for name, x in STREAMS.items()}
        changed[stream][:, {"txt": 3, "img": 0}[stream]] += 1
        moved = {name: (abs(x - before[name]) > 1e-4).any(axis=(0, 2)) for name, x in run(changed).items()}
        assert np.flatnonzero(moved.pop(stream)).tolist() == reached
        assert all(other.all() for other in moved.values())


def test_takes_over_projections_and_equal_filters():
    operator, fresh = built("joint_hyena_2d")
    donor, weights = built("joint_mha", qk_norm="rms")
    taken = operator.transplant(fresh, donor, weights)
    for name in ("txt", "img"):
        assert_same_leaves(taken[name], {part: weights[name][part] for part in ("qkv", "proj")})
    assert all(taken[name] is fresh[name] for name in ("short_filter", "grid_filter"))
    along, filtered = built("joint_hyena_x", kernel=3)
    assert operator.transplant(fresh, along, filtered)["short_filter"] is filtered["short_filter"]


@pytest.mark.parametrize("text_out", [True, False])
def test_cost(text_out):
    operator, _ = built("joint_hyena_2d", kernel=5, text_out=text_out)
    gates, meeting = 11 + (11 if text_out else 6), 11 * (1 + text_out)
    assert_counted(operator, (gates + meeting) * 12, 2 * 36 * (5 * 5 + 25 * 6))


def test_refuses():
    for options, message in (
        ({"kernel": 2}, "joint_hyena_2d kernel: got 2, expected an odd number"),
        ({"qk_norm": "rms"}, "option 'qk_norm': not known"),
    ):
        with pytest.raises(BadInput, match=message):
            ops.resolve(op("joint_hyena_2d", **options), "joint", SIZES)
