"""The window kernels compiled for TPUs that are not there, at the sizes of published models, beside their plain forms.

`pytest -s -m slow tests/ops/pallas/test_grid_aot.py` prints the rows of the table in `graftax/ops/README.md`.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding

from graftax.evaluate.aot import Program, measure, parse_topology
from graftax.ops.placement import place
from graftax.ops.target import KERNELS, compiling_for
from graftax.ops.tiles import disc_on, near_attention, window_on
from graftax.ops.window import banded_attention
from graftax.train import MeshConfig
from graftax.train.sharding import activation_spec, activations

pytestmark = [pytest.mark.slow, pytest.mark.full_compiler]

HEADS, HEAD_DIM = 16, 72
SIDES = {16: 32, 128: 1}
"""Images of a batch by the side of the grid: DiT-XL/2 at 256 pixels, PixArt at 2,048."""

ATTENTION = {
    "band": lambda side: lambda q, k, v: banded_attention(q, k, v, 4),
    "square": lambda side: lambda q, k, v: near_attention(q, k, v, window_on((side, side), 2)),
    "moved": lambda side: lambda q, k, v: near_attention(q, k, v, window_on((side, side), 2, moved=True)),
    "disc": lambda side: lambda q, k, v: near_attention(q, k, v, disc_on((side, side), 8)),
}


def attention(window, side):
    """Of q, k and v with heads side by side, as projections leave them and the next one takes them."""

    def run(*args):
        heads = (a.reshape(*a.shape[:2], HEADS, HEAD_DIM) for a in args)
        return ATTENTION[window](side)(*heads).reshape(args[0].shape)

    return run


def gradients(window, side):
    return lambda slope, *args: jax.vjp(attention(window, side), *args)[1](slope)


def compiled(run, chips, shape, dtype, count):
    topology = parse_topology(chips)
    array = jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(topology.devices()[0]))
    with compiling_for("tpu", topology.chip.kinds[0]):
        return topology.chip, jax.jit(run).trace(*[array] * count).lower(lowering_platforms=("tpu",)).compile()


def counted(window, side, backward, chips, dtype=jnp.bfloat16):
    """Bytes of temporaries and bytes moved of a program, printed with its least time."""
    shape = (SIDES[side], side * side, HEADS * HEAD_DIM)
    run, count = (gradients(window, side), 4) if backward else (attention(window, side), 3)
    chip, program = compiled(run, chips, shape, dtype, count)
    held, moved = program.memory_analysis().temp_size_in_bytes, program.cost_analysis()["bytes accessed"]
    seconds = max(moved / chip.hbm_bandwidth, program.cost_analysis()["flops"] / chip.flops)
    words = f"{window} {side} {'backward' if backward else 'forward'} {chips} {jnp.dtype(dtype)}"
    print(f"{words}: {held / 1e6:.0f} MB held, {moved / 1e6:.0f} MB moved, {1e3 * seconds:.2f} ms")
    return held, moved, shape


@pytest.mark.parametrize("chips", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("window", ATTENTION)
@pytest.mark.parametrize("backward", [False, True])
def test_compiles_and_holds_no_matrix(window, side, backward, chips):
    pytest.importorskip("libtpu")
    held, moved, shape = counted(window, side, backward, chips)
    array = 2 * shape[0] * shape[1] * shape[2]
    assert held < array
    # Each array once, and keys with the rows around every strip; backwards the slope and three gradients too.
    assert moved < (14 if backward else 6) * array


@pytest.mark.parametrize("backward", [False, True])
def test_float32_fits_on_the_chip(backward):
    pytest.importorskip("libtpu")
    held, _, shape = counted("square", 128, backward, "v5e:2x2", jnp.float32)
    assert held < 4 * shape[1] * shape[2]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("window", ["band", "square", "disc"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_plain_form_moves_more(monkeypatch, window, side, backward):
    """Of a loop, like that over a disc's strips, the compiler counts one turn."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv(KERNELS, "off")
    held, moved, shape = counted(window, side, backward, "v5e:2x2")
    array = 2 * shape[0] * shape[1] * shape[2]
    assert held > array
    assert moved > (14 if backward else 6) * array


def test_each_chip_has_its_own_heads_and_images():
    pytest.importorskip("libtpu")
    names, shape = ("batch", None, "heads", None), (8, 1024, HEADS, HEAD_DIM)

    def trace(built, rules):
        sharding = NamedSharding(built, activation_spec(names, shape, built, rules))
        array = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

        def run(*args):
            with activations(built, rules):
                out, back = jax.vjp(lambda *args: near_attention(*args, window_on((32, 32), 2)), *args)
                return [place(a, *names) for a in back(out)]

        return jax.jit(run).trace(array, array, array)

    row = measure(Program("attention", 8, 1, trace), parse_topology("v5e:2x4"), MeshConfig(fsdp=4, tensor=2))
    assert row["fits"]
    assert row["collectives"] == {}
