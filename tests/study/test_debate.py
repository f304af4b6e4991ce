"""The debate: equal FLOPs, each entrant and seed once, what is refused; and the config that graftax brings."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from graftax import config
from graftax.checkpoint import save_model
from graftax.errors import BadInput, NonFinite
from graftax.evaluate.score import Score
from graftax.models.cost import flops, train_flops
from graftax.study import debate as debates
from graftax.study import stages
from graftax.study.debate import step_flops
from graftax.study.debate_config import DebateConfig
from graftax.testing import random_params
from graftax.train.recipes import Recipe

FILE = Path(__file__).parents[2] / "configs" / "debate.py"
SCENES = FILE.with_name("debate_scenes.py")
SIZES = {"input_size": 8, "in_channels": 1, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
FLOW = {"lightningdit": {**SIZES, "patch_size": 2, "swiglu": False, "rope": False, "rmsnorm": False}}


@pytest.fixture
def tree(tmp_path, judge, data):
    """Fields of a debate between a flow, and a DiT of noise whose blocks are left out half of the time."""
    return {
        "kind": "debate",
        "workdir": str(tmp_path / "debate"),
        "entrants": {"flow": FLOW, "noise": {"dit": SIZES, "recipe": "stochastic_depth(0.5, mode=batch)"}},
        "claims": ({"question": "a", "text": "Flows win.", "by": "them", "better": "flow", "than": "noise"},),
        "training": {"loop": {"steps": 2}, "batch_size": 8, "optimiser": {"warmup_steps": 0}},
        "data": {"source": str(data), "size": 8, "held_out": 0.25},
        "judging": {"classifier": str(judge), "judged": 12, "shown": 1, "sample": {"steps": 2, "batch_size": 12}},
        "seeds": (0, 1),
    }


@pytest.fixture
def grafts(tree, tmp_path):
    """Fields of a debate between two edits of one model."""
    spec = config.build(DebateConfig, tree).entrants["noise"].spec()
    save_model(tmp_path / "teacher", spec, random_params(spec, jax.random.key(0)), {})
    windows = {"edits": ("blocks[*].mixer=swa(window=1)",)}
    return {**tree, "teacher": str(tmp_path / "teacher"), "entrants": {"flow": {}, "noise": windows}}


@pytest.fixture
def debate(tree):
    """What they say."""
    return config.build(DebateConfig, tree)


def contest(settings):
    return debates._Contest(settings, Path(settings.workdir))


def test_every_entrant_costs_what_the_first_one_does(debate):
    long = dataclasses.replace(
        debate, training=dataclasses.replace(debate.training, loop=dataclasses.replace(debate.training.loop, steps=1000))
    )
    flow, _, noise, _ = contest(long).plans()
    assert flow.training.loop.steps == 1000
    assert noise.training.loop.steps > 1000
    assert noise.work * noise.training.loop.steps == pytest.approx(flow.work * 1000, rel=1e-3)


def test_seeds_differ_and_nothing_else_changes_an_identity(debate):
    plans = contest(debate).plans()
    assert [plan.training.loop.seed for plan in plans] == [0, 1, 0, 1]
    assert len({plan.identity for plan in plans}) == 4
    quiet = dataclasses.replace(debate, claims=())
    assert [plan.identity for plan in contest(quiet).plans()] == [plan.identity for plan in plans]


def test_grafts_begin_with_the_teachers_weights(grafts):
    plain, _, windows, _ = contest(config.build(DebateConfig, grafts)).plans()
    assert [block["mixer"].kind for block in (*plain.spec.blocks, *windows.spec.blocks)] == ["mha", "mha", "swa", "swa"]
    save_model(Path(grafts["teacher"]), plain.spec, random_params(plain.spec, jax.random.key(1)), {})
    other = contest(config.build(DebateConfig, grafts)).plans()
    assert {plan.identity for plan in other}.isdisjoint({plain.identity, windows.identity})


def test_heads_and_the_averaged_model_count():
    spec = config.build(DebateConfig, config.read(f"{FILE}:g,1")).entrants["SRA"].spec()
    width, tokens = spec.width, spec.tokens
    head = 3 * 2 * tokens * (width * 2 * width + 2 * width * width)
    teacher = flops(spec.replace(program=spec.program[:4]), head=False)
    assert step_flops(spec, Recipe.parse("sra(2, 4)")) == train_flops(spec) + head + teacher


def test_each_is_done_once_and_failures_stay(debate, tmp_path, monkeypatch):
    asked, folder = [], tmp_path / "debate"

    class Jury:
        measures = ()

        def draw(self, model, sample):
            return np.zeros((3, 8, 8, 1), np.float32)

        def score(self, samples):
            return Score({"accuracy": 0.5, "frechet": 1.0}, 3)

        def grid(self, samples):
            return samples[0]

    def trained(self, plan, work):
        asked.append(str(plan))
        if plan.entrant == "noise":
            raise NonFinite("step 2: loss or gradient not finite")
        return dataclasses.make_dataclass("Stand", ["spec"])(plan.spec)

    monkeypatch.setattr(debates._Contest, "_trained", trained)
    monkeypatch.setattr(debates._Contest, "_loss", lambda self, model: 0.5)
    monkeypatch.setattr(debates._Contest, "examiner", Jury())
    found = debates.run(debate, folder)
    assert len(asked) == 4
    assert [run.failure for run in found.failed] == ["step 2: loss or gradient not finite"] * 2
    assert debates.run(debate, folder).runs == found.runs
    assert len(asked) == 4
    (folder / found.plans[1].picture).unlink()
    debates.run(debate, folder)
    assert asked[4:] == ["flow, seed 1, 2 steps"]


def test_refusals(tmp_path):
    tree = {"workdir": "w", "claims": (), "training": {"loop": {"steps": 2}}}
    with pytest.raises(BadInput, match="2 of dit, lightningdit, ddt, expected one"):
        config.build(DebateConfig, {**tree, "entrants": {"x": {**FLOW, "dit": SIZES}}})
    with pytest.raises(BadInput, match=r"entrants\['x'\]: expected sizes as one of dit"):
        config.build(DebateConfig, {**tree, "entrants": {"x": {}}})
    with pytest.raises(BadInput, match=r"entrants\['x'\]: expected edits alone, of the teacher"):
        config.build(DebateConfig, {**tree, "entrants": {"x": FLOW}, "teacher": "demo"})
    claim = {"question": "a", "text": "So.", "by": "them", "better": "y", "than": "x"}
    with pytest.raises(BadInput, match="no entrant 'y'"):
        config.build(DebateConfig, {**tree, "entrants": {"x": FLOW}, "claims": (claim,)})
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(BadInput, match="expected the record of a debate"):
        debates.read_runs(tmp_path / "results.json")


def test_the_config_asks_all_questions():
    whole = config.build(DebateConfig, config.read(FILE))
    assert {claim.question for claim in whole.claims} == set("abcdefgh")
    assert {side for claim in whole.claims for side in (claim.better, claim.than)} == set(whole.entrants)
    for entrant in whole.entrants.values():
        Recipe.parse(entrant.recipe).check(entrant.spec(), whole.training.batch_size)
    part = config.build(DebateConfig, config.read(f"{FILE}:h,7"))
    assert list(part.entrants) == ["flow, plain", "DDT"]
    assert part.training.loop.steps == 7
    for bad in ("z,7", "a", "a,0"):
        with pytest.raises(BadInput, match="expected QUESTIONS,STEPS"):
            config.read(f"{FILE}:{bad}")


def test_entrants_that_cannot_be_drawn_are_refused_at_once(tree):
    debate = config.build(DebateConfig, {**tree, "flows": "ddim"})
    with pytest.raises(BadInput, match=r"entrants\['flow'\]: sampler 'ddim'"):
        contest(debate).plans()
    assert config.build(DebateConfig, {**tree, "flows": "heun", "flow_steps": 3}).sample(flow=True).steps == 3


@pytest.mark.parametrize(
    ("entrant", "message"),
    [
        ({"edits": ("rotary()",)}, "ModelSpec.frame rope: not known"),
        ({"recipe": "repa(1, width=6)"}, "takes 'features' of the data, which have none"),
    ],
)
def test_what_the_model_of_scenes_cannot_be_is_refused_before_any_training(entrant, message):
    tree = config.read(f"{SCENES}:g,6")
    tree = {**tree, "data": {**tree["data"], "limit": 8}, "entrants": {"odd": entrant}, "claims": ()}
    with pytest.raises(BadInput, match=rf"entrants\['odd'\]: .*{message}"):
        contest(config.build(DebateConfig, tree)).plans()


def test_the_model_of_scenes_is_asked_what_it_can_be():
    whole = config.build(DebateConfig, config.read(SCENES))
    assert {claim.question for claim in whole.claims} == set("abcdfg")
    assert {side for claim in whole.claims for side in (claim.better, claim.than)} == set(whole.entrants)
    teacher = stages.read_model(whole.teacher).spec
    work = {name: step_flops(one.spec(teacher), Recipe.parse(one.recipe)) for name, one in whole.entrants.items()}
    assert work["TREAD"] == pytest.approx(work["stochastic depth by batch"], rel=0.01)
    assert whole.entrants["flow"].spec(teacher).prediction.is_flow
    with pytest.raises(BadInput, match="expected QUESTIONS,STEPS"):
        config.read(f"{SCENES}:e,80")


@pytest.mark.slow
@pytest.mark.parametrize("fields", ["tree", "grafts"])
def test_two_steps_of_two_models_from_the_command_line(run, fields, request, tmp_path):
    tree, path = request.getfixturevalue(fields), tmp_path / "debate.py"
    path.write_text(f"def get_config():\n    return {tree!r}\n")
    code, out, err = run("sweep", "--config", path)
    assert code == 0, err
    assert "Flows win." in out
    folder = tmp_path / "debate"
    runs = json.loads((folder / "results.json").read_text())["runs"]
    assert [line["entrant"] for line in runs] == ["flow", "flow", "noise", "noise"]
    assert all(np.isfinite([line["loss"], line["score"]["frechet"]]).all() for line in runs)
    assert len({line["loss"] for line in runs}) == 4
    page = (folder / "report.html").read_text()
    assert "Flows win." in page
    assert "Said by: them." in page
    assert (folder / "table.md").read_text().startswith("| claim | who said it | measured | verdict |\n| --- | --- |")
    code, out, err = run("sweep", "--config", path)
    assert code == 0
    assert "4 of them done already" in err
