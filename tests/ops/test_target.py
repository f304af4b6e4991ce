"""Operators take the form of the platform that they are compiled for, wherever that happens."""

import jax
import jax.numpy as jnp
import pytest

from graftax.distill.groups import over_sites
from graftax.errors import BadInput
from graftax.ops.ssd import default_chunk
from graftax.ops.target import KERNELS, compiling_for, kernels, target
from graftax.ops.window import default_block


def test_the_default_is_this_machine():
    assert target() == jax.default_backend()


def test_told_otherwise_until_the_end():
    with compiling_for("tpu"):
        assert (target(), default_block(4), default_chunk()) == ("tpu", 128, 128)
        with compiling_for("cpu"):
            assert (target(), default_block(4), default_chunk()) == ("cpu", 16, 32)
        assert target() == "tpu"
    assert target() == jax.default_backend()


def test_sites_are_one_batch_on_tpus():
    def loops():
        return "scan" in str(jax.make_jaxpr(over_sites(lambda x: x @ x))(jnp.ones((2, 3, 3))))

    with compiling_for("tpu"):
        assert not loops()
    with compiling_for("cpu"):
        assert loops()


def test_kernels_on_tpus_alone_and_off_by_a_switch(monkeypatch):
    assert not kernels()
    with compiling_for("tpu"):
        assert kernels()
        monkeypatch.setenv(KERNELS, "off")
        assert not kernels()
        monkeypatch.setenv(KERNELS, "no")
        with pytest.raises(BadInput, match="GRAFTAX_KERNELS: got 'no', expected on or off"):
            kernels()
