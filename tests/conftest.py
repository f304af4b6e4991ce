"""Compiling takes most of the tests' time, so most of them compile quickly; those that speak of what users get do not."""

import os

import jax
import pytest

FULL = ("golden", "bench", "test_conv", "test_ssd")
"""Parts of paths of tests that compare with other implementations' numbers, or look at memory, lines or times."""


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request):
    """XLA's cheapest compilation, here and in processes that tests start (bits must agree between the two)."""
    if any(part in str(request.path) for part in FULL):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)
