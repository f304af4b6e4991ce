"""The rulings and the table of a debate, on constructed runs."""

from graftax import config
from graftax.evaluate.drawing import ACCURACY, FRECHET
from graftax.evaluate.score import Score
from graftax.pages import debate_page
from graftax.study.debate import Debated, Run
from graftax.study.debate_config import DebateConfig
from graftax.study.verdicts import HOLDS, OPEN, OPPOSITE

SIZES = {"input_size": 8, "hidden_size": 8, "depth": 1, "num_heads": 1, "num_classes": 3}
FLOW = "velocity, linear"


class Jury:
    """As much of an examiner as rulings and tables read."""

    measures, ranked = (ACCURACY, FRECHET), FRECHET


def line(entrant, seed, frechet, predicts=FLOW, failure=""):
    score = None if failure else Score({"accuracy": 0.5, "frechet": frechet}, 30)
    loss = None if failure else 0.6 + seed / 10
    return Run(entrant, seed, f"{entrant}{seed}", 480_000, 30_000_000, 1200, predicts, 61.4, score, loss, failure)


def found(*claims, runs):
    names = dict.fromkeys(run.entrant for run in runs)
    tree = {
        "workdir": "w", "entrants": {name: {"dit": SIZES} for name in names}, "training": {"loop": {"steps": 1200}},
        "claims": tuple({"question": "a", "text": "It is so.", "by": "them", "better": b, "than": t} for b, t in claims),
    }  # fmt: skip
    return Debated(config.build(DebateConfig, tree), (), tuple(runs), Jury())


def of(entrant, values, **more):
    return [line(entrant, seed, value, **more) for seed, value in enumerate(values)]


def test_each_claim_gets_its_verdict_from_the_distances():
    runs = [*of("x", (1.0, 1.1)), *of("y", (2.0, 2.1)), *of("z", (1.95, 2.2))]
    rulings = debate_page.rulings(found(("x", "y"), ("y", "x"), ("y", "z"), runs=runs))
    assert [one.verdict for one in rulings] == [HOLDS, OPPOSITE, OPEN]
    assert rulings[0].sentence == (
        "Holds: x draws better than y, Fréchet distance 1.05 ± 0.0707 against 2.05 ± 0.0707 (14.1 standard errors)."
    )
    assert "The opposite holds: y draws worse than x" in rulings[1].sentence
    assert "Not decidable at this size: y beside z, Fréchet distance" in rulings[2].sentence
    assert "class accuracy 50.0% ± 0.0% against" in rulings[0].measured
    assert "held-out loss 0.65 ± 0.0707 against" in rulings[0].measured


def test_losses_of_different_things_are_not_compared():
    runs = [*of("x", (1.0, 1.1)), *of("y", (2.0, 2.1), predicts="eps, ddpm")]
    assert "loss" not in debate_page.rulings(found(("x", "y"), runs=runs))[0].measured


def test_nothing_is_decided_about_what_failed():
    runs = [*of("x", (1.0, 1.1)), line("y", 0, 2.0), line("y", 1, 0, failure="step 3: not finite")]
    debated = found(("x", "y"), runs=runs)
    (ruling,) = debate_page.rulings(debated)
    assert ruling.verdict == OPEN
    assert "y, seed 1, step 3: not finite" in ruling.sentence
    _, rows = debate_page.table(debated)
    assert [row[5] for row in rows] == ["50.0% ± 0.0%", "failed"]
    assert {len(row) for row in rows} == {8}


def test_table():
    head, rows = debate_page.table(found(runs=of("x", (1.0, 1.1))))
    assert rows == [["x", "0.48 M", "30.0 M", "1,200", "61", "50.0% ± 0.0%", "1.05 ± 0.0707", f"0.65 ± 0.0707 ({FLOW})"]]
    assert len(head) == len(rows[0])
