"""How networks of convolutions are best compiled where they run."""

from __future__ import annotations

import functools

import jax

_SUMS_ALONE = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
"""Nothing of a program but sums goes to YNNPACK."""


def compile_options() -> dict[str, str]:
    """What `jax.jit` takes as `compiler_options` for a network that is mostly convolutions; {} where nothing is to be said.

    On a CPU XLA hands products, sums and convolutions to YNNPACK. Sums gain by it, as those of normalisations over all
    pixels (6 ms in place of 20), and so do the products of transformers; convolutions are sooner done by XLA itself:
    InceptionV3 in 0.6 of the time, the autoencoder of scenes likewise (two AVX-512 cores). What a version of XLA does not
    know is left out.
    """
    return _SUMS_ALONE if jax.default_backend() == "cpu" and _known() else {}


@functools.cache
def _known() -> bool:
    """Whether this XLA takes the option; it refuses others by name."""
    try:
        jax.jit(lambda: 0, compiler_options=_SUMS_ALONE).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "xla_cpu_experimental_ynn_fusion_type" not in str(error):
            raise
        return False
    return True
