"""The demo's findings as a page: pictures into a folder, `report.html` with all of them inside, and the verdict."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from graftax.checkpoint.files import filling
from graftax.evaluate import pictures
from graftax.evaluate.report import Figure, Report
from graftax.models.cost import count_params, flops
from graftax.pages import common
from graftax.spec import ModelSpec
from graftax.study.demo import Findings
from graftax.study.experiment import Branch, Judged
from graftax.study.stages import last_eval

MAX_POINTS_LOST, MAX_FRECHET_RATIO = 5.0, 1.5
"""What the 50 % graft should reach: class accuracy within 5 points of the teacher's, Fréchet distance within 1.5 times."""


def verdict(found: Findings) -> list[str]:
    """What was found, against the aims, in two sentences; and what became of the other graft."""
    half, teacher = found.half.judged[-1].score, found.teacher.score
    every = found.all.judged[-1].score
    lost, ratio = 100 * (teacher.accuracy - half.accuracy), half.frechet / teacher.frechet
    change = f"{-lost:+.1f}" if round(lost, 1) else "0.0"
    met = [lost <= MAX_POINTS_LOST, ratio <= MAX_FRECHET_RATIO]
    return [
        f"{found.half.name}: class accuracy {half.accuracy:.1%}, teacher {teacher.accuracy:.1%} "
        f"({change} points; aim: at most {MAX_POINTS_LOST:g} lost: {'met' if met[0] else 'NOT met'}).",
        f"{found.half.name}: Fréchet distance {half.frechet:.3g}, teacher {teacher.frechet:.3g} "
        f"(x {ratio:.2f}; aim: at most x {MAX_FRECHET_RATIO:g}: {'met' if met[1] else 'NOT met'}).",
        f"{found.all.name}: class accuracy {every.accuracy:.1%}, Fréchet distance {every.frechet:.3g} "
        f"(x {every.frechet / teacher.frechet:.2f} the teacher's).",
    ]


def write(found: Findings, folder: Path) -> Path:
    """Write pictures, results.json and report.html into `folder`; returns the page's path."""
    with filling(folder) as fresh:
        _fill(found, fresh)
    return folder / "report.html"


def _fill(found: Findings, folder: Path) -> None:
    page = Report(
        "Grafting, start to finish",
        f"A diffusion transformer that draws garments has its attention exchanged for {_scion(found.half)}, "
        "a gated convolution. The new operators learn from the old ones (stage 1), then the whole model is tuned briefly "
        "(stage 2).",
    )
    page.verdict(*verdict(found))
    _samples(page, found, folder)
    _numbers(page, found)
    _distillation(page, found, folder)
    _finetuning(page, found, folder)
    _everything(page, found, folder)
    _protocol(page, found)
    page.write(folder / "report.html", common.footer())
    (folder / "results.json").write_text(json.dumps(_results(found), indent=1) + "\n")


def _samples(page: Report, found: Findings, folder: Path) -> None:
    page.section(
        "The same noise, four models",
        f"Each column is one class: {', '.join(found.class_names)}. All models start from the same noise, "
        "so a picture that looks the same in two grids is one that the graft did not change.",
    )
    shown = [("teacher", found.teacher), *((j.title, j) for j in found.half.judged)]
    page.figures([_grid(found, folder, judged, name, f"half-{i}") for i, (name, judged) in enumerate(shown)], "24rem")


def _numbers(page: Report, found: Findings) -> None:
    page.section("In numbers")
    head = ["", "class accuracy", "Fréchet", "held-out loss", "parameters", "FLOPs / image", "forward"]
    rows = [_row(found, "teacher", "teacher", found.teacher, found.half.report.before)]
    for branch in (found.half, found.all):
        rows += [_row(found, branch.name, f"{branch.name}, {j.title}", j, branch.report.after) for j in branch.judged]
    real = found.real
    rows.append(["real images, held out", f"{real.accuracy:.1%}", f"{real.frechet:.3g}", "", "", "", ""])
    page.table(head, rows, strong=(0, 3))


def _row(found: Findings, timed: str, name: str, judged: Judged, spec: ModelSpec) -> list[str]:
    forward = f"{1e3 * found.forward[timed]:.1f} ms"
    score = judged.score
    cost = [f"{count_params(spec):,}", f"{flops(spec) / 1e6:.1f} M", forward]
    return [name, f"{score.accuracy:.1%}", f"{score.frechet:.3g}", f"{judged.loss:.4f}", *cost]


def _distillation(page: Report, found: Findings, folder: Path) -> None:
    settings = found.config.distill
    page.section(
        "Stage 1: the new operators copy the old ones",
        f"All {len(found.half.report.sites)} new operators learn at once, {settings.settings.steps} steps of "
        f"{settings.batch_size} images. The relative error is ||new - old|| / ||old|| on held-out images; 1 is what an "
        "operator that outputs zeros would score.",
    )
    branches = (found.half, found.all)
    error = {b.name: [(line["step"], line["error"]) for line in b.distilled if line["split"] == "eval"] for b in branches}
    pictures.curves(folder / "stage1-error.png", error, x="step", y="mean relative error")
    pictures.bars(folder / "stage1-layers.png", {b.name: _by_layer(b) for b in branches}, x="block", y="relative error")
    page.figures(
        [
            Figure(folder / "stage1-error.png", "Mean over the new operators", "while they learn"),
            Figure(folder / "stage1-layers.png", "By block", "after stage 1"),
        ],
        least="20rem",
    )


def _finetuning(page: Report, found: Findings, folder: Path) -> None:
    stage = found.config.finetune
    page.section(
        "Stage 2: the whole model, briefly",
        f"{stage.loop.steps} steps of {stage.batch_size} images with the objective the teacher was trained with. "
        f"The teacher's own loss on the held-out images is {found.teacher.loss:.4f}.",
    )
    branches = (found.half, found.all)
    series = {b.name: [(0, b.judged[1].loss), *_evals(b.finetuned, "loss")] for b in branches}
    last = max(point[0] for points in series.values() for point in points)
    series["teacher"] = [(0, found.teacher.loss), (last, found.teacher.loss)]
    train = {b.name: [(line["step"], line["loss"]) for line in b.finetuned if line["split"] == "train"] for b in branches}
    pictures.curves(folder / "stage2-heldout.png", series, x="step", y="loss, held out")
    pictures.curves(folder / "stage2-train.png", train, x="step", y="loss, training")
    page.figures(
        [
            Figure(folder / "stage2-heldout.png", "Held-out loss", "of the averaged weights"),
            Figure(folder / "stage2-train.png", "Training loss", "means between two points"),
        ],
        least="20rem",
    )


def _everything(page: Report, found: Findings, folder: Path) -> None:
    branch = found.all
    page.section(
        f"All of it: {branch.name}",
        "The grafting paper (arXiv 2506.05340) sees quality collapse when no attention is left in DiT-XL/2. This is a far "
        f"smaller model on {found.half.report.before.tokens} tokens; what happens here is shown below and in the table.",
    )
    page.figures([_grid(found, folder, j, j.title, f"all-{i}") for i, j in enumerate(branch.judged)])


def _protocol(page: Report, found: Findings) -> None:
    c = found.config
    page.section(
        "How this was measured",
        f"Samples: {found.teacher.score.count} per model, classes in turn, all from the same noise; {c.judging.sample}.",
        common.judge_text(found.real, found.real_counts, found.features),
        common.forward_text(),
        f"Teacher: {found.teacher_meta.source or 'unknown source'}; its weights have the SHA-256 {found.teacher_hash[:16]}.",
    )
    page.text(f"{found.half.name}\n{found.half.report}\n\n{found.all.name}\n{found.all.report}")
    page.text("\n".join(f"{seconds:7.1f} s  {title}" for title, seconds in found.seconds.items()))


def _grid(found: Findings, folder: Path, judged: Judged, title: str, name: str) -> Figure:
    path = folder / f"samples-{name}.png"
    common.save_grid(path, judged, found.class_names, found.config.judging.shown)
    return Figure(path, title, f"accuracy {judged.score.accuracy:.1%}, Fréchet {judged.score.frechet:.3g}")


def _scion(branch: Branch) -> str:
    site = branch.report.sites[0]
    return str(site.held(branch.report.after))


def _by_layer(branch: Branch) -> list[tuple[float, float]]:
    final = last_eval(branch.distilled)
    return [(site.block, final[f"error/{site}"]) for site in branch.report.sites]


def _evals(history: list[dict], name: str) -> list[tuple[float, float]]:
    return [(line["step"], line[name]) for line in history if line["split"] == "eval"]


def _results(found: Findings) -> dict:
    """The numbers of the page, JSON types."""
    rows = {"teacher": found.teacher, **{f"{b.name}, {j.title}": j for b in (found.half, found.all) for j in b.judged}}
    return {
        "verdict": verdict(found),
        "models": {name: {**asdict(j.score), "heldout_loss": j.loss} for name, j in rows.items()},
        "real_heldout": asdict(found.real),
        "forward_seconds": found.forward,
        "layer_errors": {b.name: dict(_by_layer(b)) for b in (found.half, found.all)},
        "sampling": asdict(found.config.judging.sample),
        "seconds": found.seconds,
    }
