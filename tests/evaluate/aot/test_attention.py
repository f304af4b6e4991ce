"""Full attention at 16,384 tokens compiled for TPUs that are not there: by jax's kernel, on every chip its own part."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from graftax.backbones.dit import dit_spec
from graftax.diffusion import Sampling
from graftax.evaluate.aot import Program, measure, parse_topology, sample_program
from graftax.ops import attention as attention_file
from graftax.ops.attention import full_attention
from graftax.ops.placement import place
from graftax.train import MeshConfig
from graftax.train.sharding import activation_spec, activations

N, HEADS, HEAD_DIM, IMAGES = 16384, 16, 72, 8
TOKENS = ("batch", None, "heads", None)


def gradients(q, k, v, keys):
    return jax.grad(lambda *args: full_attention(*args, keys).astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)


@pytest.mark.parametrize(
    ("m", "mesh"),
    [
        (N, MeshConfig(fsdp=4, tensor=2)),
        pytest.param(300, MeshConfig(data=8), marks=pytest.mark.slow),
        pytest.param(300, MeshConfig(data=1, tensor=8), marks=pytest.mark.slow),
    ],
)
def test_each_chip_attends_to_its_own_heads_and_images(m, mesh):
    pytest.importorskip("libtpu")

    def trace(built, rules):
        def shaped(names, shape, dtype):
            place = NamedSharding(built, activation_spec(names, shape, built, rules))
            return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

        q, k, v = (shaped(TOKENS, (IMAGES, count, HEADS, HEAD_DIM), jnp.bfloat16) for count in (N, m, m))
        keys = None if m == N else shaped(("batch", None), (IMAGES, m), bool)

        def run(*args):
            with activations(built, rules):
                return [place(a, *TOKENS) for a in gradients(*args)]

        return jax.jit(run).trace(q, k, v, keys)

    row = measure(Program("attention", IMAGES, 1, trace), parse_topology("v5e:2x4"), mesh)
    assert row["fits"]
    assert row["collectives"] == {}
    # Twice the arrays of a chip with padded heads, and float32 copies of them: nowhere near n x m.
    assert row["temporary_bytes"] < 40 * IMAGES * HEADS * 128 * (N + m) / 8


@pytest.mark.slow
def test_sampling_splits_the_kernel_too(monkeypatch):
    """Without the mesh, jax refuses: the compiler cannot split a kernel by itself."""
    pytest.importorskip("libtpu")
    monkeypatch.setattr(attention_file, "DENSE_BELOW", {"tpu": 0})
    spec = dit_spec(input_size=8, patch_size=2, hidden_size=48, depth=1, num_heads=2, num_classes=10)
    program = sample_program(spec, 8, Sampling(steps=2), dtype="bfloat16")
    row = measure(program, parse_topology("v5e:2x4"), MeshConfig(fsdp=8))
    assert row["fits"]
    assert row["collectives"] == {}
