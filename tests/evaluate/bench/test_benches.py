"""Every measurement at toy size: it runs, its columns are as documented, and what does not depend on time is right."""

import jax
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.evaluate.bench import (
    BENCHES,
    bench_compile,
    bench_conv,
    bench_forward,
    bench_sampling,
    bench_train,
    format_table,
)
from graftax.evaluate.bench.compile import random_graft
from graftax.evaluate.bench.conv import crossover
from graftax.models import Model
from graftax.spec import op
from graftax.testing import random_params, tiny_spec

pytestmark = pytest.mark.full_compiler


def check_table(rows, count):
    assert len(rows) == count
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert len(format_table(rows).splitlines()) == count + 1


def test_forward_against_torch():
    pytest.importorskip("torch")
    rows = bench_forward(variant="DiT-S/8", depth=1, batches=(2,), rounds=1)
    check_table(rows, 3)
    assert [row["candidate"] for row in rows] == ["graftax", "torch eager", "torch oneDNN"]
    assert [row["batch"] for row in rows] == [2, 2, 2]
    for row in rows:
        assert row["max_difference"] < 1e-4
        assert (row["speedup"] == 1) if row["candidate"] == "graftax" else (row["speedup"] > 0)


@pytest.mark.parametrize("onednn", [False, True])
def test_torch_model_equals_ours(onednn):
    torch = pytest.importorskip("torch")
    from graftax.evaluate.bench.torch_dit import TorchDiT

    spec = tiny_spec(depth=2)
    params = random_params(spec, jax.random.key(0))
    rng = np.random.default_rng(0)
    x, t, y = rng.standard_normal((3, 8, 8, 4), np.float32), np.array([0.0, 500.0, 999.0], np.float32), np.array([0, 5, 10])
    expected = Model(spec, params)(x, t, y)
    rival = TorchDiT(spec, params).use_onednn(onednn)
    out = rival(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t), torch.from_numpy(y))
    np.testing.assert_allclose(out.numpy().transpose(0, 2, 3, 1), expected, atol=5e-5)


def test_torch_model_refuses_grafts():
    pytest.importorskip("torch")
    from graftax.evaluate.bench.torch_dit import TorchDiT

    spec = random_graft(2, 24, 0)
    with pytest.raises(BadInput, match="hyena_x"):
        TorchDiT(spec, {})


@pytest.mark.slow
def test_train_against_torch():
    """Two libraries, one objective: after the same updates both are at the same loss."""
    pytest.importorskip("torch")
    rows = bench_train(variant="DiT-S/8", depth=1, batch=2, rounds=2)
    assert [row["candidate"] for row in rows] == ["graftax auto", "torch eager", "torch oneDNN"]
    losses = [row["loss"] for row in rows]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
    assert rows[0]["speedup"] == 1


@pytest.mark.parametrize(("settings", "message"), [({"depth": 13}, "depth: got 13"), ({"variant": "DiT-Z/2"}, "variant")])
def test_forward_refuses(settings, message):
    pytest.importorskip("torch")
    with pytest.raises(BadInput, match=message):
        bench_forward(**{"variant": "DiT-S/8", **settings})


def test_random_graft():
    spec = random_graft(28, 24, 0)
    assert sum(block["mixer"].kind == "hyena_x" for block in spec.blocks) == 14
    assert spec != random_graft(28, 24, 1)
    assert len({block.with_op("mixer", op("mha")) for block in spec.blocks}) == 1


@pytest.mark.slow
def test_compile():
    plain, full, *unrolled = rows = bench_compile(depth=5, width=12)
    check_table(rows, 4)
    assert [row["plan"] for row in rows] == ["kind_scan"] * 2 + ["unroll"] * 2
    assert [row["step"] for row in rows] == ["plain", "full"] * 2
    assert [row["weights"] for row in rows] == ["collected"] * 2 + ["tree"] * 2
    assert plain["hlo_lines"] < full["hlo_lines"] < unrolled[1]["hlo_lines"]
    assert min(row["compile_s"] for row in rows) > 0


@pytest.mark.slow
def test_conv():
    rows = bench_conv(tokens=(32, 64), taps=(2, 4), channels=8, rounds=1)
    check_table(rows, 4)
    assert all(row[key] > 0 for row in rows for key in row if key.endswith("_ms"))
    assert set(crossover(rows)) == {32, 64}


def test_crossover_is_where_direct_stops_winning():
    def row(taps, direct, fft):
        times = {"direct_ms": direct, "backward_direct_ms": direct, "fft_ms": fft, "backward_fft_ms": fft}
        return {"tokens": 9, "taps": taps, **times}

    assert crossover([row(4, 1, 5), row(16, 6, 5), row(8, 4, 5), row(32, 4, 5)]) == {9: 8}
    assert crossover([row(4, 9, 5)]) == {9: 0}


@pytest.mark.slow
def test_sampling():
    rows = bench_sampling(variant="DiT-S/8", depth=1, steps=3, rounds=1)
    check_table(rows, 1)
    assert rows[0]["sample_s"] > 0
    assert rows[0]["overhead"] > -1


def test_names():
    assert {"forward", "compile", "attention", "conv", "sampling"} <= set(BENCHES)
    assert all(function.__name__ == f"bench_{name}" for name, function in BENCHES.items())
