"""Specs: JSON of both versions, values that mean the same are equal, impossible ones are refused."""

import dataclasses
import json

import numpy as np
import pytest

from graftax.backbones.dit import with_compat
from graftax.blocks import resolve_all
from graftax.errors import BadInput
from graftax.spec import Adapter, BlockSpec, ModelSpec, OpSpec, Prediction, Sizes, Step, members, op, sequential
from graftax.testing import tiny_spec

SPEC = tiny_spec(depth=3, hidden_size=16, num_heads=2)
NAN = float("nan")

VERSION_1 = """{"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 16, "num_heads": 2, "num_classes": 10,
"blocks": [{"mixer": {"kind": "mha", "options": []}, "mlp": {"kind": "mlp", "options": [["ratio", 4.0]]}},
{"mixer": {"kind": "hyena_x", "options": [["kernel", 3]]}, "mlp": {"kind": "mlp", "options": [["ratio", 4.0]]}},
{"mixer": {"kind": "mha", "options": []}, "mlp": {"kind": "mlp", "options": [["ratio", 3.0]]}}],
"program": [{"blocks": [0, 1], "merge": "project", "loops": 1, "alpha": 1.0},
{"blocks": [2, 0], "merge": "mean", "loops": 2, "alpha": 0.5}, {"blocks": [1], "merge": "mean", "loops": 1, "alpha": 1.0}],
"learn_sigma": false, "backbone": "dit", "adapters": [{"path": "blocks/00/mixer/proj/kernel", "rank": 4, "alpha": 8.0},
{"path": "blocks/00/mixer/qkv/kernel", "rank": 4, "alpha": 8.0}], "compat": "diffusers"}"""
"""What the code of version 1 wrote for a grafted model."""


def rich() -> ModelSpec:
    """A model with grafts, merges, loops and adapters."""
    spec = tiny_spec(depth=3, hidden_size=16, num_heads=2, learn_sigma=False)
    blocks = (
        spec.blocks[0], spec.blocks[1].with_op("mixer", op("hyena_x", kernel=3)),
        spec.blocks[2].with_op("mlp", op("mlp", ratio=3.0)),
    )  # fmt: skip
    return spec.replace(
        blocks=blocks,
        program=(Step((0, 1), "project"), Step((2, 0), "mean", 2, 0.5), Step((1,))),
        adapters=tuple(Adapter(f"blocks/00/mixer/{name}/kernel", 4, 8.0) for name in ("proj", "qkv")),
    )


# --- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, rich(), with_compat(rich(), "diffusers")])
def test_json_there_and_back(spec):
    text = spec.to_json()
    again = ModelSpec.from_json(text)
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.to_json() == text
    assert "\n" not in text
    assert json.loads(text)["version"] == 2


def test_the_scale_of_times_is_younger_than_the_first_files():
    flow = SPEC.replace(prediction=Prediction("velocity", "noise", False, scale=1000))
    assert json.loads(flow.to_json())["prediction"]["scale"] == 1000
    assert ModelSpec.from_json(flow.to_json()) == flow
    assert "scale" not in SPEC.to_json()
    assert (flow.prediction.is_flow, SPEC.prediction.is_flow) == (True, False)
    assert not Prediction("velocity").is_flow


def test_version_1_is_read():
    spec = ModelSpec.from_json(VERSION_1)
    assert spec == with_compat(rich(), "diffusers")
    assert spec == resolve_all(spec)
    assert [spec.blocks[0][slot].option("eps") for slot in ("norm1", "norm2")] == [1e-6, 1e-5]
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_version_1_from_before_adapters_programs_and_compat():
    fields = json.loads(VERSION_1)
    for name in ("adapters", "compat", "learn_sigma", "backbone", "program"):
        del fields[name]
    spec = ModelSpec.from_json(json.dumps(fields))
    expected = rich().replace(adapters=(), program=(), prediction=Prediction())
    assert spec == expected
    assert spec.program == sequential(3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "model spec"),
        ("[]", "model spec"),
        ('"dit"', "model spec"),
        (json.dumps({"version": 3}), "'sizes'"),
        (SPEC.to_json().replace('"version": 2', '"version": 3'), "version: got 3, expected 2"),
        (SPEC.to_json().replace('"backbone": "dit", ', ""), "backbone"),
        (SPEC.to_json().replace('"backbone": "dit"', '"backbone": "unet"'), r"backbone: got .unet., expected one of"),
        (SPEC.to_json().replace('"version": 2', '"version": 2, "colour": "red"'), "colour"),
        (SPEC.to_json().replace('"alpha": 1.0', '"alpha": NaN'), "alpha: got nan"),
        (SPEC.to_json().replace('"loops": 1', '"loops": 2.5'), "loops: got 2.5"),
        (SPEC.to_json().replace('["ratio", 4.0]', '["ratio", 4.0], ["ratio", 2.0]'), "expected each once"),
        (SPEC.to_json().replace('["ratio", 4.0]', '["ratio", null]'), "option ratio: got None"),
        (SPEC.to_json().replace('["ratio", 4.0]', '"ratio"'), "model spec"),
        (SPEC.to_json().replace('"grid": [4, 4]', '"grid": [4]'), "grid: got"),
        (SPEC.to_json().replace('"target": "eps"', '"target": "noise"'), "target: got 'noise'"),
        (VERSION_1.replace('"compat": "diffusers"', '"colour": "red"'), "colour"),
        (VERSION_1.replace('"hidden_size": 16, ', ""), "hidden_size"),
        (VERSION_1.replace('"hidden_size": 16', '"hidden_size": "16"'), "model spec"),
    ],
)
def test_other_json_is_refused(text, message):
    with pytest.raises(BadInput, match=message) as error:
        ModelSpec.from_json(text)
    assert "\n" not in str(error.value)


# --- Values ------------------------------------------------------------------------------------------------------------


def test_the_order_in_which_options_are_given_does_not_matter():
    one, other = OpSpec("x", (("b", 2), ("a", 1.0))), OpSpec("x", (("a", 1.0), ("b", 2)))
    assert one == other == op("x", b=2, a=1.0)
    assert hash(one) == hash(other)
    assert str(one) == "x(a=1.0, b=2)"
    assert one.option("b") == 2
    assert one.option("c", "none") == "none"
    assert SPEC.replace(frame=SPEC.frame[::-1]) == SPEC


def test_blocks_are_numbers_of_any_integer_type():
    step = Step((np.int64(1), np.int32(0)))
    assert step == Step((1, 0))
    assert all(type(block) is int for block in step.blocks)
    json.dumps(dataclasses.asdict(step))


def test_a_block_with_another_operator():
    block = SPEC.blocks[0]
    assert block.slots == ("adaln", "norm1", "mixer", "norm2", "mlp")
    assert block.with_op("mixer", op("swa"))["mixer"] == op("swa")
    assert block.with_op("mixer", block["mixer"]) == block
    for wrong in ("attn", ""):
        with pytest.raises(KeyError):
            block.with_op(wrong, op("swa"))


def test_what_follows_from_the_fields():
    assert (SPEC.width, SPEC.tokens, SPEC.depth, SPEC.classes) == (16, 16, 3, 10)
    assert (SPEC.image_shape, SPEC.out_channels) == ((8, 8, 4), 8)
    wide = SPEC.replace(sizes=Sizes(16, 2, 8, (2, 5), text=7), prediction=Prediction(variance=False))
    assert (wide.image_shape, wide.out_channels) == ((4, 10, 4), 4)
    assert (wide.sizes.image, wide.sizes.tokens) == (10, 17)
    assert rich().merges == ((0, 1),)
    assert SPEC.with_frame(classes=3).classes == 3


@pytest.mark.parametrize(("depth", "keys"), [(3, ["00", "01", "02"]), (100, ["00", "99"]), (101, ["000", "007", "100"])])
def test_keys_of_blocks_sort_in_order(depth, keys):
    spec = SPEC.replace(blocks=SPEC.blocks[:1] * depth, program=())
    found = [spec.block_key(i) for i in range(depth)]
    assert found == sorted(found)
    assert len(set(map(len, found))) == 1
    assert set(keys) <= set(found)
    assert spec.merge_key((2, 0)) == f"{spec.block_key(2)}_{spec.block_key(0)}"


def test_members():
    assert members("abcab") == {"a": [0, 3], "b": [1, 4], "c": [2]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OpSpec(""), "operator kind: got ''"),
        (lambda: OpSpec(3), "operator kind: got 3"),
        (lambda: OpSpec("x", (("a", 1), ("a", 2))), r"'x': options \['a', 'a'\], expected each once"),
        (lambda: op("x", a=NAN), "'x' option a: got nan"),
        (lambda: op("x", a=float("inf")), "'x' option a: got inf"),
        (lambda: op("x", a=None), "'x' option a: got None"),
        (lambda: op("x", a=(1, 2)), r"'x' option a: got \(1, 2\)"),
        (lambda: OpSpec("x", (("a",),)), "expected .name, value. pairs"),
        (lambda: OpSpec("x", ((1, 2),)), "expected .name, value. pairs"),
        (lambda: BlockSpec("", ()), "block kind: got ''"),
        (lambda: BlockSpec("x", (("a", "mha"),)), "block 'x' slot 'a': got 'mha', expected an OpSpec"),
        (lambda: BlockSpec("x", (("a", op("mha")), ("a", op("swa")))), "slots .* expected each once"),
        (lambda: Sizes(0, 1, 1, (1, 1)), "Sizes.width: got 0"),
        (lambda: Sizes(8, 2, 4.0, (1, 1)), "Sizes.head_dim: got 4.0"),
        (lambda: Sizes(8, True, 4, (1, 1)), "Sizes.heads: got True"),
        (lambda: Sizes(8, 2, 4, (4,)), r"Sizes.grid: got \(4,\), expected rows and columns"),
        (lambda: Sizes(8, 2, 4, (4, -1)), "Sizes.grid: got -1"),
        (lambda: Sizes(8, 2, 4, (4, 2.5)), "Sizes.grid: got 2.5"),
        (lambda: Sizes(8, 2, 4, (4, 4), text=-1), "Sizes.text: got -1"),
        (lambda: Prediction("noise"), "Prediction.target: got 'noise'"),
        (lambda: Prediction(time="sigma"), "Prediction.time: got 'sigma'"),
        (lambda: Prediction(variance="yes"), "Prediction.variance: got 'yes'"),
        (lambda: Prediction("velocity", "noise", scale=0), "Prediction.scale: got 0, expected more than 0"),
        (lambda: Prediction("velocity", "noise", scale=float("nan")), "Prediction.scale: got nan"),
        (lambda: Prediction(scale=1000), "Prediction.scale: got 1000, expected more than 0, and 1 for times by index"),
        (lambda: Step(()), "expected block ids"),
        (lambda: Step((-1,)), "block id: got -1"),
        (lambda: Step((1.0,)), "block id: got 1.0"),
        (lambda: Step((0,), "max"), "merge 'max', expected one of"),
        (lambda: Step((0,), loops=2.5), "loops: got 2.5"),
        (lambda: Step((0,), loops=0), "loops: got 0"),
        (lambda: Step((0,), loops=True), "loops: got True"),
        (lambda: Step((0,), alpha=NAN), "alpha: got nan"),
        (lambda: Step((0,), alpha="1"), "alpha: got '1'"),
        (lambda: SPEC.replace(backbone="unet"), "backbone: got 'unet'"),
        (lambda: SPEC.replace(version=1), "version: got 1, expected 2"),
        (lambda: SPEC.replace(blocks=()), "blocks: got none"),
        (lambda: SPEC.replace(program=(Step((3,)),)), r"step \(3,\): expected block ids within 0\.\.2"),
        (lambda: SPEC.replace(frame=(("patch", 2),)), "frame channels: got None"),
        (lambda: SPEC.with_frame(patch=0), "frame patch: got 0"),
        (lambda: SPEC.with_frame(classes=NAN), "frame option classes: got nan"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()
