"""Options of the compiler for networks of convolutions: where they are given, and that they change rounding alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.nets import convolving

pytestmark = pytest.mark.full_compiler


@pytest.fixture(autouse=True)
def fresh():
    convolving._known.cache_clear()
    yield
    convolving._known.cache_clear()


def test_they_are_for_cpus_alone(monkeypatch):
    assert convolving.compile_options()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert convolving.compile_options() == {}


def test_what_the_compiler_does_not_know_is_left_out(monkeypatch):
    def refused(*_, **options):
        raise jax.errors.JaxRuntimeError(
            f"INVALID_ARGUMENT: No such compile option: {next(iter(options['compiler_options']))!r}"
        )

    monkeypatch.setattr(jax, "jit", refused)
    assert convolving.compile_options() == {}


def test_other_complaints_of_the_compiler_are_not_hidden(monkeypatch):
    def broken(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: out of luck")

    monkeypatch.setattr(jax, "jit", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of luck"):
        convolving.compile_options()


def test_a_convolution_stays_what_it_is():
    """Sums of 288 float32 products in another order: within 1e-5 of the largest."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 9, 9, 32), (3, 3, 32, 16)))

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    plain = jax.jit(conv, compiler_options=convolving.compile_options()).lower(x, w).compile()
    assert "ynn" not in plain.as_text()
    expected = jax.jit(conv)(x, w)
    assert jnp.abs(plain(x, w) - expected).max() < 1e-5 * jnp.abs(expected).max()
