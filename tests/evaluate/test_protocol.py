"""Protocols: what changes their hash, which labels and bytes they give, and what does not compare."""

import json

import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.evaluate.protocol import LATER, Protocol, differences, require_equal

OTHER = {
    "sampler": "ddpm", "steps": 250, "cfg_scale": 4.0, "cfg_channels": None, "eta": 0.5, "seed": 1, "count": 10_000,
    "labels": "balanced", "decoder": "demo", "rounding": "truncate", "dtype": "bfloat16", "reference": "a.npz 12ab",
    "features": "inception 34cd", "text": "T5 56ef", "spacing": "time_uniform", "last": "sigma_min",
    "shift": 3.0, "guidance": 3.5, "skip": (1,), "skip_scale": 2.0, "skip_span": (0.0, 0.5), "interval": (0.1, 2.0),
    "cfg_power": 4.0, "weak": "model", "last_size": 0.1, "diffusion": "sbdm(2)", "churn": (40.0, 0.05, 50.0, 1.003),
    "tolerance": (1e-5, 1e-5), "refresh": (0, 2), "reuse": "first_block(0.1)",
}  # fmt: skip


def changed(**fields):
    """The default protocol with some fields changed, those of the sampling too."""
    return Protocol.from_json(json.dumps({**Protocol().fields(), **fields}))


def test_every_field_changes_the_hash():
    assert OTHER.keys() == Protocol().fields().keys()
    sampler = {
        "spacing": "dpmpp_2m", "last": "dpmpp_2m", "shift": "euler", "diffusion": "euler_maruyama", "churn": "edm_heun",
        "refresh": "euler",
    }  # fmt: skip
    hashes = {changed(sampler=name).hash for name in ("ddim", *sampler.values())}
    for name in OTHER:
        hashes.add(changed(**{"sampler": sampler.get(name, "ddim"), name: OTHER[name]}).hash)
    assert len(hashes) == len(OTHER) + 5


def test_results_keep_the_hash_that_they_were_written_with():
    assert Protocol().hash == "bfd6ca558478"  # of version 0.2
    first = {name: value for name, value in Protocol().fields().items() if name not in LATER}
    assert Protocol.from_json(json.dumps(first)) == Protocol()


def test_models_of_classes_have_the_hash_that_they_had_before_prompts():
    assert "text" not in json.loads(Protocol().to_json())
    assert str(changed(text="T5 56ef", count=8)).startswith("8 images of prompts read by T5 56ef, ")


def test_json_round_trip():
    of_others = {"eta": 0.0, "shift": 1.0, "diffusion": "sigma", "churn": (), "weak": "skip", "refresh": (), "reuse": ""}
    protocol = changed(**{**OTHER, "sampler": "sde_dpmpp_2m", **of_others})
    assert (protocol.sampling.steps, protocol.count) == (250, 10_000)
    assert Protocol.from_json(protocol.to_json()) == protocol
    with pytest.raises(BadInput, match="colour"):
        Protocol.from_json('{"colour": 3}')


@pytest.mark.parametrize(
    ("field", "value"), [("sampler", "unipc"), ("labels", "some"), ("rounding", "up"), ("count", 0), ("steps", 1001)]
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(BadInput, match=field if field != "steps" else "1001"):
        changed(**{field: value})


def test_balanced_labels_take_turns_and_random_ones_do_not():
    balanced = Protocol(count=25, labels="balanced").label_array(10)
    assert balanced.tolist() == [i % 10 for i in range(25)]
    drawn = Protocol(count=20_000).label_array(10)
    counts = np.bincount(drawn, minlength=10)
    assert counts.min() > 1800  # 4.7 standard deviations below 2,000
    assert len(set(counts)) > 1
    np.testing.assert_array_equal(drawn, Protocol(count=20_000).label_array(10))
    assert (drawn != Protocol(count=20_000, seed=1).label_array(10)).any()


def test_bytes_follow_the_two_reference_rules():
    x = np.linspace(-1.1, 1.1, 4001, dtype=np.float32)
    dit = np.clip(127.5 * x + 128.0, 0, 255).astype(np.uint8)
    adm = np.clip((x + 1) * 127.5, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(Protocol().to_uint8(x), dit)
    np.testing.assert_array_equal(Protocol(rounding="truncate").to_uint8(x), adm)
    assert (dit != adm).mean() > 0.4


def test_differences_name_fields_and_users():
    protocols = {"a": Protocol(), "b": changed(steps=250), "c": Protocol()}
    assert differences(protocols) == ["steps: 50 (a, c), 250 (b)"]
    with pytest.raises(BadInput, match=r"steps: 50 \(a, c\), 250 \(b\)"):
        require_equal(protocols)
    require_equal({"a": Protocol(), "b": Protocol()})
