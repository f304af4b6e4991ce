"""`graftax search` on the tiny world: tables, edits that `graft` takes, budget, what it refuses."""

import json
import re

import jax
import pytest

from graftax import api
from graftax.models.cost import flops
from graftax.surgery import replace, select
from graftax.testing import assert_trees_close

ALL = ("--config.graft.edits=('blocks[*].mixer=hyena_x(kernel=4)', 'blocks[*].mlp=mlp(ratio=3.0)')",)


@pytest.fixture
def grafted(run, recipe):
    """A recipe whose student, not distilled, has scions at every site of both slots."""
    code, out, err = run("graft", "--config", recipe, *ALL)
    assert code == 0, (out, err)
    return recipe


def search(run, recipe, *extra):
    folder = recipe.parent / "run"
    code, out, err = run("search", "--config", recipe, "--student", folder / "grafted", "--images=10", *extra)
    assert code == 0, (out, err)
    return out, json.loads((folder / "search" / "search.json").read_text())


def test_search(run, grafted, tmp_path, teacher):
    out, found = search(run, grafted)
    assert [site["site"] for site in found["sites"][:2]] == ["blocks[0].mixer", "blocks[0].mlp"]
    assert len(found["sites"]) == 8
    assert all(site["harm"] > 0 and site["FLOPs saved"] > 0 for site in found["sites"])
    sets = {one["set"]: one for one in found["sets"]}
    assert list(sets) == ["least harm", "greedy search", "interleaved 50%", "deep 50%"]
    assert sets["interleaved 50%"]["selector"] == "blocks[1,3].mixer blocks[1,3].mlp"
    assert sets["deep 50%"]["selector"] == "blocks[2,3].mixer blocks[2,3].mlp"
    for one in sets.values():
        assert one["FLOPs saved"] >= sets["interleaved 50%"]["FLOPs saved"]
        assert all(text in out for text in one["selector"].split())
    assert (tmp_path / "run" / "search" / "harm.png").read_bytes().startswith(b"\x89PNG")
    best = min((sets["least harm"], sets["greedy search"]), key=lambda one: one["joint harm"])
    assert [re.match(r"replace\((.*?), ", edit)[1] for edit in found["edits"]] == best["selector"].split()
    # The edits are text that `graft` takes, and save what they promise.
    arguments = [f"--edit={edit}" for edit in found["edits"]]
    assert run("graft", teacher, *arguments, "--out", tmp_path / "best")[0] == 0
    specs = [api.load(folder).spec for folder in (teacher, tmp_path / "best")]
    assert flops(specs[0]) - flops(specs[1]) >= sets["interleaved 50%"]["FLOPs saved"]
    # The same model, with the student's scions at these sites and the teacher's operators elsewhere, is there already.
    saved, student, original = (api.load(tmp_path / "run" / name) for name in ("search/best", "grafted", teacher))
    assert saved.spec == specs[1]
    chosen = select(best["selector"].split(), saved.spec)
    assert saved.meta.sites == tuple(map(str, chosen))
    for site in select(student.meta.sites, student.spec):
        source = student if site in chosen else original
        operators = [model.params["blocks"][saved.spec.block_key(site.block)][site.slot] for model in (saved, source)]
        assert_trees_close(*operators, rtol=0, atol=0)
    assert all(edit in out for edit in found["edits"])


def test_budget(run, grafted, teacher):
    whole = flops(api.load(teacher).spec)
    out, found = search(run, grafted, f"--budget={whole - 1}", "--json")
    assert json.loads(out) == found
    least, greedy, *_ = found["sets"]
    assert least["sites"] == greedy["sites"] == 1
    assert least["selector"] == greedy["selector"]


def test_refuses(run, refused, recipe, grafted, teacher, tmp_path):
    student = tmp_path / "run" / "grafted"
    common = ("search", "--config", recipe, "--student", student, "--images=10")
    assert "expected 1 to" in refused(*common, "--budget=0")
    assert "60% has no interleaving" in refused(*common, "--share=60")
    assert "expected 1 or more" in refused(*common, "--images=0")
    assert "no scions in its meta" in refused(*common[:4], teacher)
    half = api.graft(api.load(teacher), replace("blocks[1::2].mixer", "hyena_x"), jax.random.key(0))
    api.save(half, tmp_path / "half")
    assert "no scion at blocks[2].mixer" in refused(*common[:4], tmp_path / "half")
