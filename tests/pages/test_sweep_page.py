"""The table and the verdict of a sweep."""

import dataclasses

import numpy as np

from graftax import config
from graftax.evaluate.drawing import ACCURACY, FRECHET
from graftax.evaluate.score import Score
from graftax.pages import sweep_page
from graftax.study import sweep as sweeps
from graftax.study.config import SweepConfig
from graftax.study.experiment import Judged


class Jury:
    """As much of an examiner as the tables read."""

    measures, parts, ranked, kept, points = (ACCURACY, FRECHET), (), FRECHET, ACCURACY, 1.0


def score(accuracy):
    return Score({"accuracy": accuracy, "frechet": 1 - accuracy}, 300)


def line(variant, seed, accuracies, failure="", flops=90_000_000):
    scores = tuple(score(accuracy) for accuracy in accuracies)
    return sweeps.Run(
        variant, seed, f"{variant}{seed}", 1_100_000, flops, 0.012, 1.2, 60.0, None if failure else 0.25, scores,
        (0.1,) * len(scores), failure,
    )  # fmt: skip


def findings(*runs, seeds=(0,)):
    teacher = Judged("teacher", np.zeros((3, 8, 8, 1), np.uint8), score(0.90), 0.1)
    tree = {
        "workdir": "w", "teacher": "demo", "distill": {}, "finetune": {"loop": {"steps": 1}}, "seeds": seeds,
        "variants": {run.variant: {"edits": ("blocks[*].mlp=3",)} for run in runs},
    }  # fmt: skip
    settings = config.build(SweepConfig, tree)
    return sweeps.Findings(settings, teacher, (1_000_000, 100_000_000), (), runs, Jury())


def test_table_has_sizes_relative_to_the_teacher_and_scores_by_stage():
    _, rows = sweep_page.table(findings(line("x", 0, (0.5, 0.7, 0.9))))
    assert rows[0][:4] == ["teacher", "1.00 M", "100.0 M", "10.0 ms"]
    assert rows[1] == [
        "x", "1.10 M (+10.0 %)", "90.00 M (-10.0 %)", "12.0 ms (x 1.20)", "0.250", "50.0%", "70.0%", "90.0%", "0.5", "0.3",
        "0.1",
    ]  # fmt: skip


def test_table_over_seeds_gives_mean_and_deviation():
    runs = line("x", 0, (0.5, 0.7, 0.8)), line("x", 1, (0.5, 0.7, 0.9))
    _, rows = sweep_page.table(findings(*runs, seeds=(0, 1)))
    assert len(rows) == 2
    assert rows[1][7] == "85.0% ± 7.1%"


def test_verdict_names_best_cheapest_and_failed():
    found = findings(
        line("best", 0, (0.5, 0.7, 0.91)), line("cheap", 0, (0.5, 0.7, 0.895), flops=50_000_000),
        line("cheaper", 0, (0.5, 0.7, 0.85), flops=40_000_000), line("broken", 0, (), failure="step 2: not finite"),
    )  # fmt: skip
    best, cheapest, failed = sweep_page.verdict(found)
    assert "best, 0.09 (teacher 0.1)" in best
    assert "the 2 variants within 1 point" in cheapest
    assert "cheap, 50.00 M (-50.0 %)" in cheapest
    assert failed == "broken, seed 0, failed: step 2: not finite"
    lonely = findings(dataclasses.replace(line("x", 0, (0.1, 0.1, 0.1))))
    assert "No variant keeps" in sweep_page.verdict(lonely)[1]


def test_categories_after_stage_2_have_a_table_of_their_own(monkeypatch):
    runs = line("x", 0, (0.5, 0.7, 0.8)), line("x", 1, (0.5, 0.7, 0.9)), line("broken", 0, (), failure="no")
    monkeypatch.setattr(Jury, "parts", (dataclasses.replace(ACCURACY, title="counting"),))
    head, rows = sweep_page.parts_table(findings(*runs, seeds=(0, 1)))
    assert (head, rows) == (["", "counting"], [["teacher", "90.0%"], ["x", "85.0% ± 7.1%"]])


def test_terminal_table_is_aligned():
    head, rows = sweep_page.table(findings(line("x", 0, (0.5, 0.7, 0.9)), line("a longer name", 0, (), failure="no")))
    lines = sweep_page.text(head, rows).splitlines()
    assert len({len(text) for text in lines}) == 1
    assert len(lines) == 2 + len(rows)
