"""Claims by the numbers that decide them, on findings that are made up."""

import copy

import pytest

from graftax.study.claims import FALSE, OPEN, TRUE, answers, claims, setting, summary


def line(kind, span, error, program=""):
    return {
        "kind": kind, "span": list(span), "error": error, "program": program, "distance": 2 * error,
        "distances": [error, 3 * error], "by_time": [error, None], "cosine": 1.0,
    }  # fmt: skip


ERRORS = {"skip": 0.5, "middle repeat": 0.9, "reverse": 0.3, "random": 0.2, "parallel": 0.4, "looped parallel": 0.1}


def stretch(name, lo, hi, joint):
    """Main span, and both halves of it where all costs more below."""
    main, halves = (lo + 1, hi - 1), ((lo + 1, lo + 3), (hi - 3, hi - 1))
    spans = [line(kind, span, error / (1 + i)) for i, span in enumerate((main, *halves)) for kind, error in ERRORS.items()]
    sweep = [line("looped parallel", main, abs(1 - k * a / 4) + 0.01, f"parallel({lo}, {hi}, loops={k}, alpha={a})")
             for k in (1, 2, 4) for a in (1.0, 4.0)]  # fmt: skip
    random = [line("random", main, 0.22)]
    return {"name": name, "span": [lo, hi], "joint": joint, "main": list(main), "halves": list(map(list, halves)),
            "spans": spans, "random": random, "sweep": sweep}  # fmt: skip


def findings(backbone, contrast=0.3):
    """Six joint layers, the first of which costs four times the others, then six of one stream, least costly at the ends."""
    errors = [0.8, *[0.2] * 5, 0.1, *[0.3] * 4, 0.1]
    one = {"groups": [[0, 4], [4, 9], [9, 13]], "contrast": contrast}
    return {
        "backbone": backbone, "orders": 2, "similarity": {"all": {"sample": one}},
        "single": [line("skip", (i, i + 1), error) for i, error in enumerate(errors)],
        "stretches": [stretch("double", 0, 6, True), stretch("single", 6, 12, False)],
    }  # fmt: skip


def verdicts(found, beside=()):
    return {one.name: one.verdict for one in claims(found, beside)}


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("flux", {"R2": FALSE, "R3": FALSE, "R4": OPEN, "R5": OPEN}),
        ("sd3", {"R2": TRUE, "R3": OPEN, "R4": TRUE, "R5": OPEN}),
        ("auraflow", {"R2": TRUE, "R3": OPEN, "R4": OPEN, "R5": TRUE}),
        ("dit", {"R2": OPEN, "R3": OPEN, "R4": OPEN, "R5": OPEN}),
    ],
)
def test_claims_about_a_family_are_judged_on_it(backbone, expected):
    assert verdicts(findings(backbone)) == {"R1": TRUE, "R6": OPEN, "R7": TRUE, "R8": TRUE, **expected}


@pytest.mark.parametrize(("kind", "where", "error", "claim"), [
    ("middle repeat", 0, 0.4, "R1"), ("random", 1, 0.5, "R7"), ("parallel", 0, 0.01, "R4"),
])  # fmt: skip
def test_a_single_number_turns_a_claim(kind, where, error, claim):
    """One that holds where all its parts hold."""
    found = findings("sd3")
    changed = copy.deepcopy(found)
    lines = [one for one in changed["stretches"][where]["spans"] if one["kind"] == kind]
    lines[1 if claim == "R4" else 0]["error"] = error  # R4 is of the lower half
    assert (verdicts(found)[claim], verdicts(changed)[claim]) == (TRUE, FALSE)
    others = verdicts(found).keys() - {claim}
    assert all(verdicts(found)[name] == verdicts(changed)[name] for name in others)


def test_flux_is_as_it_is_said_to_be():
    """A mild first layer; loops that help double blocks alone."""
    found = findings("flux")
    found["single"][0]["error"] = 0.3
    single = next(one for one in found["stretches"][1]["spans"] if one["kind"] == "looped parallel")
    single["error"] = 0.5
    assert verdicts(found)["R2"] == verdicts(found)["R3"] == TRUE


def test_groups_of_three_families():
    flux, aura, sd3 = (findings(name, value) for name, value in {"flux": 0.5, "auraflow": 0.4, "sd3": 0.2}.items())
    assert verdicts(sd3, [flux, aura])["R6"] == TRUE
    assert verdicts(findings("sd3", 0.45), [flux, aura])["R6"] == FALSE
    assert verdicts(flux, [aura])["R6"] == OPEN
    assert "what was found of sd3 is missing" in summary(flux, [aura])[5]


def test_the_number_of_rounds():
    found = findings("dit")
    numbers = next(one.numbers for one in claims(found) if one.name == "R8")
    assert "double: of 4 layers best at 4 rounds (0.010 (pictures 0.02))" in numbers
    for one in found["stretches"]:
        for each in one["sweep"]:
            each["error"] = float(setting(each)[0])
    assert verdicts(found)["R8"] == FALSE
    for one in found["stretches"]:
        one["sweep"] = []
    assert verdicts(found)["R8"] == OPEN


def test_every_question_has_its_numbers():
    said = dict(answers(findings("flux")))
    assert len(said) == 8
    assert "0 of 12 change the prediction by less than a tenth; least position 6 (0.100 (pictures 0.20))" in "".join(
        said.values()
    )
    assert (
        "double: looped parallel 0.10 < random 0.21 < reverse 0.30 < parallel 0.40 < skip 0.50 < middle repeat 0.90"
        in "".join(said.values())
    )
    assert "for prompt 1 to" in said["Does the order matter more for some prompts?"]
