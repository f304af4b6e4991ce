"""Orders of blocks judged by what the pictures show: what is tried, how seeds are pooled, all of it on the shipped model."""

import json

import pytest

from graftax.backbones.flux import variant
from graftax.checkpoint.shipped import is_there
from graftax.data.scenes.caption import CATEGORIES
from graftax.errors import BadInput
from graftax.study.judged import JudgedOrder, JudgedOrders, _pooled, judge_orders, orders_of
from graftax.surgery import random_order
from graftax.testing import tiny_spec


def test_every_block_alone_and_each_stretch_in_all_ways():
    found = orders_of(tiny_spec(depth=8))
    assert [one.span for one in found[:8]] == [(i, i + 1) for i in range(8)]
    rest = [(one.kind, one.span) for one in found[8:] if one.kind != "random"]
    assert rest == [
        ("skip", (3, 6)), ("middle repeat", (3, 6)), ("reverse", (3, 6)), ("parallel", (3, 6)),
        ("looped parallel", (3, 6)), ("skip", (1, 4)), ("skip", (4, 7)),
    ]  # fmt: skip
    programs = {random_order(3, 6, seed).on(tiny_spec(depth=8)).program for seed in (0, 1, 2)}
    assert {one.program for one in found if one.kind == "random"} == programs
    flux = {one.span for one in orders_of(variant("flux-schnell")) if one.kind == "reverse"}
    assert flux == {(5, 15), (29, 48), (15, 43)}


def test_random_orders_of_a_span_are_one_line_with_the_spread_of_all():
    names = (*CATEGORIES, "overall")

    def order(kind, span, *shares):
        return JudgedOrder(kind, span, {name: list(shares) for name in names})

    pooled = _pooled([order("intact", (0, 0), 1.0, 0.5), order("random", (3, 6), 0.5, 0.5), order("random", (3, 6), 0, 1.0)])
    assert [one.shares["counting"] for one in pooled] == [[1.0, 0.5], [0.5, 0.5, 0, 1.0]]
    assert pooled[0].cell("overall") == "75 ± 35"
    assert order("skip", (1, 2), 0.25).cell("overall") == "25 ± 0"
    head, first, second = JudgedOrders("scenes", 2, (0, 1), "ddim", pooled).table().splitlines()
    assert head.split()[-1] == "overall"
    assert (first.split()[0], second.split()[:2]) == ("intact", ["random", "3..5"])


def test_numbers_below_1_are_refused():
    with pytest.raises(BadInput, match="judged orders: 0 captions of each category, 3 seeds"):
        judge_orders("scenes", each=0)


@pytest.mark.slow
@pytest.mark.skipif(not is_there("scenes"), reason="the model of scenes is not shipped")
def test_the_shipped_model_from_the_command_line(run, refused, tmp_path, monkeypatch):
    monkeypatch.setattr("graftax.study.judged.orders_of", lambda spec: orders_of(spec)[:1])
    command = ("painters", "scenes", "--judge", 1, "--steps", 2, "--out", tmp_path / "out", "--quiet")
    code, out, err = run(*command)
    assert code == 0, (out, err)
    assert "intact" in out
    found = json.loads((tmp_path / "out" / "judged.json").read_text())
    assert [(one["kind"], one["span"]) for one in found["orders"]] == [("intact", [0, 0]), ("skip", [0, 1])]
    assert all(len(one["shares"]) == 7 and len(one["shares"]["overall"]) == 3 for one in found["orders"])
    assert "expected neither --prompts nor --beside" in refused(*command, "--prompts", "blog", "--overwrite")
    assert "judged.json" in refused(*command)
