"""A leaf of several tensors: any part of it is that of the tensors joined, and one that lies in one tensor is a view."""

import jax.numpy as jnp
import numpy as np
import pytest

from graftax.models.joined import Joined

ALL = slice(None)


def tensors(dtype=np.float32):
    """Two tensors (d, k) of a file, as views (k, d) in our order of axes."""
    whole = np.arange(7 * 4).reshape(7, 4).astype(dtype)
    return [whole[:3].T, whole[3:].T], whole.T


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("part", [(ALL, ALL), (slice(1, 3), ALL), (ALL, slice(2, 5)), (slice(0, 2), slice(3, 7))])
def test_parts_are_those_of_the_whole(dtype, part):
    arrays, whole = tensors(dtype)
    joined = Joined(arrays, 1)
    assert (joined.shape, joined.dtype, joined.size, joined.nbytes) == (whole.shape, whole.dtype, whole.size, whole.nbytes)
    np.testing.assert_array_equal(joined[part], whole[part])
    assert joined[part].dtype == dtype
    np.testing.assert_array_equal(np.asarray(joined, np.float64), whole.astype(np.float64))


def test_a_part_of_one_tensor_is_a_view():
    arrays, _ = tensors()
    joined = Joined(arrays, 1)
    assert np.shares_memory(joined[ALL, slice(4, 6)], arrays[1])
    with pytest.raises(ValueError, match="several arrays"):
        np.asarray(joined, copy=False)
