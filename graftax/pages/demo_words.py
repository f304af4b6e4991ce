"""What the demo's page says of garments, and of scenes: what is shown, what came of it, what the paper found."""

from __future__ import annotations

from typing import Protocol

from graftax.data.config import DataConfig
from graftax.evaluate.drawing import ACCURACY, FRECHET
from graftax.evaluate.score import Score
from graftax.study.demo import Findings
from graftax.study.examiners import OVERALL, PARTS, Scenes, kind_of
from graftax.study.experiment import Branch

MAX_POINTS_LOST, MAX_FRECHET_RATIO = 5.0, 1.5
"""What half of the garments' mixers grafted should reach: class accuracy within 5 points of the teacher's, Fréchet distance
within 1.5 times."""


class Words(Protocol):
    """What differs between pages."""

    def lead(self, found: Findings) -> str:
        """What is done, in two or three sentences."""
        ...

    def verdict(self, found: Findings) -> list[str]:
        """What was found, a sentence or two each."""
        ...

    def others(self, found: Findings) -> str:
        """What to look for in the grafts after the first."""
        ...


class Garments:
    """Of the shipped DiT."""

    def lead(self, found: Findings) -> str:
        """As in `Words`."""
        return (
            f"A diffusion transformer that draws garments has its attention exchanged for {scion(found.branches[0])}, "
            "a gated convolution. The new operators learn from the old ones (stage 1), then the whole model is tuned "
            "briefly (stage 2)."
        )

    def verdict(self, found: Findings) -> list[str]:
        """The first graft against the aims, in two sentences; and what became of the others."""
        half, *others = found.branches
        score, teacher = half.judged[-1].score, found.teacher.score
        lost, ratio = 100 * (teacher[ACCURACY] - score[ACCURACY]), score[FRECHET] / teacher[FRECHET]
        change = f"{-lost:+.1f}" if round(lost, 1) else "0.0"
        met = [lost <= MAX_POINTS_LOST, ratio <= MAX_FRECHET_RATIO]
        return [
            f"{half.name}: class accuracy {score[ACCURACY]:.1%}, teacher {teacher[ACCURACY]:.1%} "
            f"({change} points; aim: at most {MAX_POINTS_LOST:g} lost: {'met' if met[0] else 'NOT met'}).",
            f"{half.name}: Fréchet distance {score[FRECHET]:.3g}, teacher {teacher[FRECHET]:.3g} "
            f"(x {ratio:.2f}; aim: at most x {MAX_FRECHET_RATIO:g}: {'met' if met[1] else 'NOT met'}).",
            *(self._other(branch, teacher[FRECHET]) for branch in others),
        ]

    def _other(self, branch: Branch, teacher: float) -> str:
        score = branch.judged[-1].score
        return (
            f"{branch.name}: class accuracy {score[ACCURACY]:.1%}, Fréchet distance {score[FRECHET]:.3g} "
            f"(x {score[FRECHET] / teacher:.2f} the teacher's)."
        )

    def others(self, found: Findings) -> str:
        """As in `Words`."""
        return (
            "The grafting paper (arXiv 2506.05340) sees quality collapse when no attention is left in DiT-XL/2. This is a "
            f"far smaller model on {found.branches[0].report.before.tokens} tokens; what happens here is shown below and in "
            "the table."
        )


class Sentences:
    """Of a model of scenes."""

    def lead(self, found: Findings) -> str:
        """As in `Words`."""
        kinds = " or ".join(dict.fromkeys(scion(branch) for branch in found.branches))
        return (
            "A diffusion transformer that draws what a sentence says, a PixArt in small, has self-attention exchanged for "
            f"{kinds} in half of its blocks, and in all of them; its look at the sentence stays. The new operators learn "
            "from the old ones (stage 1), then the whole model is tuned briefly, or adapters on it alone (stage 2)."
        )

    def verdict(self, found: Findings) -> list[str]:
        """What the teacher reaches, and of every graft what it loses, where most, and what adapters make of it."""
        teacher, real = found.teacher.score, found.examiner.real
        first = f"Teacher: {OVERALL.text(teacher[OVERALL])} overall, real pictures {OVERALL.text(real[OVERALL])}."
        return [first, *(" ".join(self._became(branch, teacher)) for branch in found.branches)]

    def _became(self, branch: Branch, teacher: Score) -> list[str]:
        raw, distilled, tuned = (judged.score[OVERALL] for judged in branch.judged)
        lost = {part: points(branch.judged[-1].score[part], teacher[part]) for part in PARTS}
        worst = min(lost, key=lambda part: lost[part])
        told = [
            f"{branch.name}: {OVERALL.text(raw)} without training, {OVERALL.text(distilled)} after stage 1, "
            f"{OVERALL.text(tuned)} after stage 2 ({points(tuned, teacher[OVERALL]):+.0f} points to the teacher).",
            f"Most is lost in {worst.title} ({lost[worst]:+.0f} points)." if lost[worst] < 0 else "No category loses.",
        ]
        if branch.adapted is not None:
            adapted = branch.adapted.score[OVERALL]
            cost = f"{points(adapted, tuned):+.0f} points to all weights"
            told.append(f"By adapters alone: {OVERALL.text(adapted)} ({cost}).")
        return told

    def others(self, found: Findings) -> str:
        """As in `Words`."""
        return (
            "The grafting paper (arXiv 2506.05340) grafts half of PixArt-Sigma's self-attention and keeps 47.8 % of GenEval "
            "where the teacher has 49.8 %; in DiT-XL/2 all of it grafted collapses. This is a far smaller model on "
            f"{found.branches[0].report.before.tokens} tokens, and one seed: configs/scenes_sweep.py asks with three."
        )


def words_of(config: DataConfig) -> Words:
    """The words for models of such data."""
    return Sentences() if kind_of(config) is Scenes else Garments()


def points(value: float, base: float) -> float:
    """By how many per cent points a share is above `base`, without a negative zero."""
    return round(100 * (value - base)) + 0.0


def scion(branch: Branch) -> str:
    """The operator that a graft put in."""
    return str(branch.report.sites[0].held(branch.report.after))
