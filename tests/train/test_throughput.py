import types

import jax
import pytest
from linear_job import Stream, linear_job

from graftax.backbones.dit import variant
from graftax.distill.cost import stage1_flops
from graftax.models.cost import flops, slot_cost, train_flops
from graftax.surgery import replace, select
from graftax.train import LoopConfig, MeshConfig, fit
from graftax.train.throughput import Throughput, count_chips

XL = variant("DiT-XL/2")


def device(kind: str, number: int = 0, coords: tuple[int, ...] | None = None) -> types.SimpleNamespace:
    place = {} if coords is None else {"coords": coords}
    return types.SimpleNamespace(device_kind=kind, id=number, **place)


def test_utilisation_of_xl_on_a_v5e() -> None:
    """110 images/s on a chip of 197 TFLOP/s at 6 x 118.66 GMAC an image (237.3 GFLOP forward)."""
    found = Throughput.on([device("TPU v5 lite", i, (i, 0, 0)) for i in range(4)], train_flops(XL)).rates(440.0)
    assert found["images_per_s_per_chip"] == 110
    assert found["flops_per_s"] == pytest.approx(440 * 3 * 237.3e9, rel=1e-3)
    assert found["mfu"] == pytest.approx(110 * 3 * 237.3e9 / 197e12, rel=1e-3)


def test_what_is_not_known_is_not_reported() -> None:
    assert Throughput.on([device("cpu")], 1e6).rates(10.0) == {"images_per_s_per_chip": 10.0, "flops_per_s": 1e7}
    assert Throughput.on([device("TPU v5 lite")], 0).rates(10.0) == {"images_per_s_per_chip": 10.0}


def test_two_cores_at_one_place_are_one_chip() -> None:
    cores = [device("TPU v3", i, (i // 2, 0, 0)) for i in range(8)]
    assert count_chips(cores) == 4
    assert count_chips(jax.devices()) == len(jax.devices())


def test_stage_1_counts_the_teacher_once_and_the_scions_three_times() -> None:
    student = replace("blocks[*].mixer", "swa", window=4).on(XL)
    scions = slot_cost(student, "mixer").flops
    assert stage1_flops(XL, student, select("blocks[*].mixer", student)) == flops(XL, head=False) + 3 * scions
    first = stage1_flops(XL, student, select("blocks[0].mixer", student))
    one_block = flops(XL.replace(program=XL.program[:1]), head=False)
    assert first == one_block + 3 * scions / 28


def test_every_run_logs_images_per_chip_and_flops() -> None:
    lines = []
    job = linear_job(mesh=MeshConfig().build(), flops_per_image=7.0)
    fit(job, Stream(), LoopConfig(steps=4, log_every=2), on_record=lines.append, show=False)
    for line in lines:
        assert line["images_per_s_per_chip"] == pytest.approx(line["images_per_s"] / len(jax.devices()))
        assert line["flops_per_s"] == pytest.approx(7 * line["images_per_s"])
        assert "mfu" not in line


def test_the_progress_display_shows_rate_and_images_per_chip(capsys: pytest.CaptureFixture[str]) -> None:
    fit(linear_job(), Stream(), LoopConfig(steps=4, log_every=2))
    last = capsys.readouterr().err.splitlines()[-1]
    assert "train 4/4 (100%)" in last
    assert "step/s" in last
    assert "loss" in last
    assert "img/s/chip" in last
