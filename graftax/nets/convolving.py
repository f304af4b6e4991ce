"""How networks of convolutions are best compiled where they run."""

from __future__ import annotations

import functools

import jax

_PLAIN = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""No part of a program goes to YNNPACK."""


def compile_options() -> dict[str, str]:
    """What `jax.jit` takes as `compiler_options` for a network that is mostly convolutions; {} where nothing is to be said.

    On a CPU XLA hands products, sums and convolutions to YNNPACK. Products of matrices gain by it; convolutions are sooner
    done by XLA itself: InceptionV3 in half of the time, SD's VAE in 0.9 of it (two AVX-512 cores). What a version of XLA
    does not know is left out.
    """
    return _PLAIN if jax.default_backend() == "cpu" and _known() else {}


@functools.cache
def _known() -> bool:
    """Whether this XLA takes the option; it refuses others by name."""
    try:
        jax.jit(lambda: 0, compiler_options=_PLAIN).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "xla_cpu_experimental_ynn_fusion_type" not in str(error):
            raise
        return False
    return True
