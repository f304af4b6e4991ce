"""The table of published models: what each is, counted exactly at XL/2 size."""

import re

import jax
import pytest
from flax.traverse_util import unflatten_dict
from golden_checkpoints import hollow
from golden_checkpoints import spec_of as spec_of_file

from graftax.backbones.dit import variant
from graftax.backbones.dit.variants import VARIANTS
from graftax.backbones.dit.zoo import ZOO
from graftax.backbones.zoo import find
from graftax.errors import BadInput
from graftax.models.cost import count_params, flops
from graftax.spec import OpSpec, op
from graftax.surgery import select
from graftax.surgery.check import expected_leaves, leaves_by_path
from graftax.surgery.config import GraftConfig

GRAFTED = [entry for entry in ZOO.values() if entry.operator]
BASE = 675_129_632
EXTRA = {
    "mha": 0, "swa": 0, "hyena_se": 23_040, "hyena_x": 17_280, "hyena_y": 5_760, "mamba2": 8_290_864 - 5_313_024,
    "mlp(ratio=4.0)": 0, "mlp(ratio=3.0)": 7_967_232 - 10_622_592, "mlp(ratio=6.0)": 15_933_312 - 10_622_592,
    "mlp_hyena_x": 10_626_176 - 10_622_592,
}  # fmt: skip
"""Parameters that an operator has more than the one it replaces, at width 1152 and 256 tokens."""


def names(models):
    return [model.name for model in models]


def extra(operator: OpSpec) -> int:
    return EXTRA[str(operator) if operator.kind == "mlp" else operator.kind]


def test_twenty_two_grafted_models_and_two_bases():
    assert len(GRAFTED) == 22
    assert names(ZOO.values())[:2] == ["DiT-XL-2-256x256", "DiT-XL-2-512x512"]
    assert [entry.spec() for entry in ZOO.values()][:2] == [variant("DiT-XL/2"), variant("DiT-XL/2", 512)]
    assert sorted(ZOO) == sorted(names(ZOO.values()))


@pytest.mark.parametrize("entry", GRAFTED, ids=lambda entry: entry.name)
def test_the_name_tells_the_slot_the_share_and_the_fid(entry):
    slot, _, percent, fid, ablation = re.fullmatch(
        r"dit-xl2-(mha|mlp)-([a-z0-9_]+)-(\d+)p-fid(\d\.\d\d)(_ablation)?", entry.name
    ).groups()
    assert (slot, int(percent), float(fid)) == ({"mixer": "mha", "mlp": "mlp"}[entry.slot], entry.percent, entry.scores.fid)
    scores = (entry.scores.inception_score, entry.scores.sfid, entry.scores.precision, entry.scores.recall)
    assert all(score is None for score in scores) if ablation else all(score is not None for score in scores)
    assert entry.blocks == {
        "50": tuple(range(1, 28, 2)), "75": tuple(i for i in range(28) if i % 4), "100": tuple(range(28))
    }[percent]  # fmt: skip


@pytest.mark.parametrize("entry", ZOO.values(), ids=lambda entry: entry.name)
def test_parameters_are_exact(entry):
    """The closed form, the tree that would be allocated, and the sum of known counts."""
    spec = entry.spec()
    tree = sum(leaf.size for leaf in expected_leaves(spec).values())  # from `jax.eval_shape`
    expected = BASE + len(entry.blocks) * extra(entry.operator) if entry.operator else BASE + (spec.tokens - 256) * 1152
    assert entry.params == count_params(spec) == tree == expected
    assert entry.flops == flops(spec)


@pytest.mark.parametrize("entry", ZOO.values(), ids=lambda entry: entry.name)
def test_published_layouts_are_recognised_without_overrides(entry):
    assert spec_of_file(hollow(entry.spec())) == entry.spec()


@pytest.mark.parametrize("entry", GRAFTED, ids=lambda entry: entry.name)
def test_the_edit_makes_the_model(entry):
    """The edit's text, through the surgeon, on shapes alone."""
    selector, _ = entry.edit.split("=", 1)
    assert tuple(site.block for site in select(selector, variant("DiT-XL/2"))) == entry.blocks
    edit, specs = GraftConfig(edits=(entry.edit,)).edit, []

    def run(params, rng):
        spec, params, _ = edit(variant("DiT-XL/2"), params, rng)
        specs.append(spec)
        return params

    base = unflatten_dict(expected_leaves(variant("DiT-XL/2")), sep="/")
    params = jax.eval_shape(run, base, jax.eval_shape(lambda: jax.random.key(0)))
    assert specs == [entry.spec()]
    expected = {path: leaf.shape for path, leaf in expected_leaves(entry.spec()).items()}
    assert {path: leaf.shape for path, leaf in leaves_by_path(params).items()} == expected


def test_names_are_found_and_others_refused():
    entry = find("dit-xl2-mha-swa-75p-fid3.09")
    assert find("grafting/dit-xl2-mha-swa-75p-fid3.09") is entry
    assert entry.operator == op("swa", window=4)
    assert ZOO.spec_of(entry.name) == entry.spec()
    assert ZOO.spec_of("DiT-S/8") == variant("DiT-S/8")
    assert len(VARIANTS) == 12
    assert all(ZOO.spec_of(name) is None for name in ("DiT-M/2", "model.pt", ""))
    with pytest.raises(BadInput, match=r"no model 'mamba_2-75p' among \d+; nearest are dit-xl2-mha-mamba_2-75p-fid3\.02$"):
        find("mamba_2-75p")
    with pytest.raises(BadInput, match=r"nearest are dit-xl2-mha-hyena_y-50p-fid2\.72"):
        find("dit-xl2-mha-hyena_y-50p-fid2.27")


def test_where_weights_are_and_under_which_terms():
    for entry in ZOO.values():
        assert "CC BY-NC" in entry.licence
        assert entry.url.startswith("https://")
        assert entry.url.endswith(".pt")
        assert entry.name in entry.url
    assert find("DiT-XL-2-512x512").url == "https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-512x512.pt"
