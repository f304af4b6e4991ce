"""GenEval's scores as a table of text, and as a page with a right and a wrong picture of every task."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

from PIL import Image

from graftax.checkpoint.files import filling, scratch
from graftax.data.crop import decode
from graftax.evaluate.geneval.prompts import TASKS
from graftax.evaluate.geneval.scoring import IMAGES, OVERALL, PROMPTS, Scores, Verdict
from graftax.evaluate.labels import captioned
from graftax.evaluate.pictures import save_png
from graftax.evaluate.report import Figure, Report
from graftax.evaluate.result import Result
from graftax.evaluate.tables import aligned
from graftax.pages import common

PAGE = "geneval.html"
THUMBNAIL = 320
"""Longest side of the page's pictures, in pixels."""

HEAD = ["", "score", "right", "of"]


def rows(found: Scores) -> list[list[str]]:
    """A row for each task, then for the whole; shares in per cent."""
    right = sum(one.correct for one in found.verdicts)
    counts = {**found.tasks, OVERALL: None, IMAGES: (right, len(found.verdicts)), PROMPTS: found.prompts}
    return [
        [name, f"{found.scores[name]:.2%}", *(("", "") if counted is None else map("{:,}".format, counted))]
        for name, counted in counts.items()
    ]


def text(found: Scores, result: Result | None) -> str:
    """The table, what judged, and what drew; `result` is None where that is not known."""
    return "\n".join([*aligned([HEAD, *rows(found)]), "", *about(found, result)])


def about(found: Scores, result: Result | None) -> list[str]:
    """What judged and what drew, a line each."""
    by = "drawn by others, no protocol is known"
    if result is not None:
        by = f"{result.name}: {result.protocol}, of {result.protocol.reference}; protocol {result.protocol.hash}"
    return [f"Judge: {found.judge}.", f"Pictures: {by}."]


def write(found: Scores, result: Result | None, pictures: Path, folder: Path) -> Path:
    """Write FOLDER/geneval.html, with pictures out of the folder `pictures`; returns its path."""
    page = Report(
        f"GenEval{f': {result.name}' if result else ''}",
        "Does the model draw the objects, counts, colours and places it is told to? A picture is right or wrong as a whole.",
    )
    page.verdict(f"Overall {found.scores[OVERALL]:.2%}: the mean of the tasks' scores, whatever their sizes.")
    page.table(HEAD, rows(found), strong=[len(found.tasks)])
    page.section("How it was measured", *about(found, result))
    with scratch() as temporary, filling(folder) as fresh:
        for tag in (tag for tag in TASKS if tag in found.tasks):
            page.section(tag)
            page.figures(_examples(found, tag, pictures, temporary))
        page.write(fresh / PAGE, common.footer())
    return folder / PAGE


def save_grid(found: Scores, pictures: Path, path: Path, rows: int) -> Path:
    """Write the first `rows` pictures of every task, a column each, with prompts and verdicts below; returns `path`."""
    columns = [[one for one in found.verdicts if one.prompt.tag == tag][:rows] for tag in found.tasks]
    shown = [one for row in zip_longest(*columns) for one in row if one is not None]
    images = [decode(pictures / one.image, one.image) for one in shown]
    told = [one.prompt.text if one.correct else f"{one.prompt.text} (wrong)" for one in shown]
    save_png(path, captioned(images, told, len(columns)))
    return path


def _examples(found: Scores, tag: str, pictures: Path, temporary: Path) -> list[Figure]:
    """The first right and the first wrong picture of a task, made small."""
    told = [one for one in found.verdicts if one.prompt.tag == tag]
    firsts = [next((one for one in told if one.correct == correct), None) for correct in (True, False)]
    return [_figure(one, pictures, temporary) for one in firsts if one is not None]


def _figure(one: Verdict, pictures: Path, temporary: Path) -> Figure:
    path = temporary / f"{one.image.replace('/', '-')}"
    small = Image.fromarray(decode(pictures / one.image, str(pictures / one.image)))
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(path)
    return Figure(path, one.prompt.text, "right" if one.correct else f"wrong: {'; '.join(one.faults)}")
