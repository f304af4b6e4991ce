"""`graftax inspect` and `graftax zoo` on names that need no file: descriptions, differences, costs, the list of models."""

import re

import pytest

from graftax.backbones.dit import variant
from graftax.backbones.dit.zoo import ZOO
from graftax.backbones.zoo import ZOO as ALL
from graftax.models.cost import count_params, flops
from graftax.pages.describe import describe
from graftax.spec import Adapter, Step
from graftax.testing import tiny_spec

SWA = "dit-xl2-mha-swa-75p-fid3.09"
DIFFERENCE = f"""\
DiT-XL/2 -> {SWA}
blocks[1:4,5:8,9:12,13:16,17:20,21:24,25:28].mixer mha -> swa(window=4), weights kept (21 sites)
leaves              292 kept, 0 new, 0 dropped
"""


def table(text):
    """A description's table as name -> (parameters, FLOPs)."""
    found = re.findall(r"^(\S+|the rest) +([\d,]+) +([\d,]+)  \S", text, re.M)
    return {name: (int(params.replace(",", "")), int(count.replace(",", ""))) for name, params, count in found}


@pytest.mark.parametrize("name", ["DiT-XL/2", "DiT-S/8", "DiT-XL-2-512x512", "dit-xl2-mha-mamba_2-75p-fid3.02"])
def test_published_names_need_no_file(run, name):
    code, out, _ = run("inspect", name)
    assert code == 0
    spec = variant(name) if name in ("DiT-XL/2", "DiT-S/8") else ZOO[name].spec()
    assert out == describe(spec, {}) + "\n"
    assert f"parameters  {count_params(spec):,} (" in out


def test_one_line_for_all_blocks_alike_and_their_sum(run):
    rows = table(run("inspect", "dit-xl2-mlp-mlp_r_3-50p-fid2.53")[1])
    assert list(rows) == ["0:27:2", "1:28:2", "the rest"]
    assert rows["0:27:2"][0] == 14 * 23_905_152
    assert rows["1:28:2"][0] == 14 * (23_905_152 - 2_655_360)
    entry = ZOO["dit-xl2-mlp-mlp_r_3-50p-fid2.53"]
    assert tuple(map(sum, zip(*rows.values(), strict=True))) == (entry.params, entry.flops)


def test_lines_count_runs_of_the_program():
    spec = tiny_spec().replace(program=(Step((0, 1), loops=3), Step((2,))))
    rows, plain = table(describe(spec, {})), table(describe(tiny_spec(), {}))
    assert rows["0:4"] == (plain["0:4"][0], plain["0:4"][1] * 7 // 4)
    assert sum(count for _, count in rows.values()) == flops(spec)


def test_adapters_and_numerics_are_told():
    spec = tiny_spec().replace(adapters=(Adapter("blocks/00/mixer/qkv/kernel", 2, 4.0),)).with_frame(compat="diffusers")
    text = describe(spec, {})
    assert "\nadapters    1, rank 2" in text
    assert "\nnumerics    those of diffusers\n" in text
    assert sum(params for params, _ in table(text).values()) == count_params(tiny_spec()) + 2 * (48 + 144)
    assert not {"adapters", "numerics"} & set(describe(tiny_spec(), {}).split())


def test_compat_of_a_name(run):
    assert "\nnumerics    those of diffusers\n" in run("inspect", "DiT-S/8", "--compat=diffusers")[1]


def test_the_difference_of_two_names(run):
    code, out, _ = run("inspect", "DiT-XL/2", SWA)
    assert code == 0
    # Specs have no weights: equal shapes count as kept.
    assert out.startswith(DIFFERENCE)


def test_the_difference_names_sizes(run, teacher):
    out = run("inspect", teacher, "DiT-S/8")[1]
    for line in ("input               8x8x1 -> 32x32x4", "patch               2 -> 8", "width               32 -> 384",
                 "heads               4 -> 6", "blocks              4 -> 12", "classes             3 -> 1000"):  # fmt: skip
        assert f"\n{line}\n" in out


def test_costs(run, teacher):
    code, out, _ = run("inspect", "DiT-XL/2", "--cost")
    assert code == 0
    assert re.search(r"^hyena_se\(kernel=4\) +100 % +-99.03 +\+0.26 +\+0.43 +-3.47$", out, re.M)
    assert re.search(r"^mlp\(ratio=3.0\) +75 % +-18.75 +- +-18.75 +-12.03$", out, re.M)
    assert out.splitlines()[-1].startswith("Mamba-2's featurizers: the paper's Table 4 prints +77.89, +116.83 and +155.77 %")
    assert len(out.splitlines()) == 1 + 8 * 3 + 1
    small = run("inspect", teacher, "--cost")[1]
    assert len(small.splitlines()) == 1 + 8 * 3  # the paper's figures are those of DiT-XL/2


def test_a_mesh(run):
    code, out, _ = run("inspect", "DiT-XL/2", "--mesh", "fsdp=8")
    assert code == 0
    assert out.splitlines()[0] == "stage 2 on the mesh data=1,fsdp=8,tensor=1"
    assert "together    10.80 GB, 1.35 GB on each device (12.5%)" in out
    assert "whole" not in out
    out = run("inspect", "DiT-XL/2", "--mesh", "fsdp=256")[1]  # 1152 = 256 * 4.5
    assert "  no axis divides: trainable/blocks/dit/mixer/0_mha/proj/kernel, 0.15 GB" in out


def test_the_list_of_models(run):
    code, out, _ = run("zoo")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(ALL)
    assert len(ZOO) == 24
    assert ZOO.keys() < ALL.keys()
    line = next(line for line in out.splitlines() if line.startswith(SWA))
    assert line.split() == [SWA, "3.09", "675,129,632", "231.14", "blocks[75%].mixer=swa(window=4)"]


def test_one_model(run):
    code, out, _ = run("zoo", "dit-xl2-mha-hyena_se-50p-fid2.61_ablation")
    assert code == 0
    fields = {line[:12].strip(): line[12:] for line in out.splitlines()}
    assert fields["edit"] == "blocks[50%].mixer=hyena_se(kernel=4) on DiT-XL-2-256x256"
    assert fields["blocks"] == "every second (14)"
    assert fields["parameters"] == "675,452,192"
    assert fields["published"] == "FID 2.61"
    assert fields["weights"].endswith("grafting/dit-xl2-mha-hyena_se-50p-fid2.61_ablation/resolve/main/model.pt")
    assert "not published" in fields["note"]
    assert run("zoo", "DiT-XL-2-512x512")[1].startswith("name        DiT-XL-2-512x512\nedit        none\n")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("zoo", "swa"), "nearest are dit-xl2-mha-swa-50p-fid2.67"),
        (("inspect", "DiT-XL/3"), "DiT-XL/3"),
        (("inspect", "DiT-XL/2", "DiT-B/2", "--cost"), "expected one"),
        (("inspect", "DiT-XL/2", "--mesh=tensor=3"), "tensor=3 does not divide the model's 16 heads"),
        (("inspect", "DiT-XL/2", "--mesh=8"), "like data=2,fsdp=4"),
        (("inspect", "DiT-XL/2", "--num-heads=8"), "--num-heads=8: the file says 16"),
        (("inspect", SWA, "--window=8"), "window=8"),
    ],
)
def test_refused(refused, argv, expected):
    assert expected in refused(*argv)
