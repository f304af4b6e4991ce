"""Who examines the models of an experiment: draws from each under the same conditions, and says in numbers how good that is.

Images of classes are seen by a small classifier, scenes by the judge that reads them back into things.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from graftax.data.pixels import images as image_data
from graftax.data.scenes import ids, render, scene
from graftax.data.scenes.caption import CATEGORIES, Caption
from graftax.data.scenes.memory import SCENES
from graftax.errors import BadInput
from graftax.evaluate import drawing, labels
from graftax.evaluate.drawing import ACCURACY, FRECHET, SampleConfig
from graftax.evaluate.scenes import prompt_set
from graftax.evaluate.scenes import score as score_scenes
from graftax.evaluate.scenes.scoring import EXACT
from graftax.evaluate.score import Measure, Score
from graftax.models import Model
from graftax.study.config import Judging

OVERALL = Measure("overall", "overall", "overall")
"""Mean of the shares of right pictures in the categories."""

EXACTLY = Measure(EXACT, "exact pictures", "exact")
"""Share of pictures that show what their caption says and nothing else."""

PARTS = tuple(Measure(name, name.replace("_", " "), name.replace("_", " ")) for name in CATEGORIES)
"""Shares of right pictures by category of the caption."""

REAL = 240
"""Real scenes whose reading is the measure of the judge itself."""


class Examiner(Protocol):
    """Examines models, all from the same noise and under the same conditions.

    Attributes:
        measures: of its scores, as they stand in tables.
        ranked: the one that says which of two models draws better.
        kept: the share that a good graft keeps.
        points: of it that such a graft may lose, in per cent.
        parts: further measures, that show where a model is weak; () where there are none.
        real: score of held-out real images.
        columns: what stands in the columns of its grids, in words.
        about: how it draws and judges, a paragraph each.
    """

    measures: tuple[Measure, ...]
    ranked: Measure
    kept: Measure
    points: float
    parts: tuple[Measure, ...]
    real: Score
    columns: str
    about: tuple[str, ...]

    def draw(self, model: Model, sample: SampleConfig | None = None) -> np.ndarray:
        """Pictures (n, h, w, c) float32 in [-1, 1], drawn as `sample` says, None: as the judging does. Raises `NonFinite`
        where a number is none."""
        ...

    def score(self, pixels: np.ndarray) -> Score:
        """What is found of pictures (n, h, w, c) in [-1, 1] that stand in for those of `draw`."""
        ...

    def grid(self, samples: np.ndarray) -> np.ndarray:
        """The first of samples (n, h, w, c) uint8 as a picture (H, W, c) uint8, with what they should show."""
        ...


class Classes:
    """Examines models of classes by a small classifier, the data's training images its reference."""

    measures, parts = (ACCURACY, FRECHET), ()
    ranked, kept, points = FRECHET, ACCURACY, 1.0

    def __init__(self, judging: Judging, data: image_data.Images) -> None:
        self._judging, self._names = judging, data.raw_train.class_names
        self._decode = image_data.decoder(data.config.latents)
        self._labels = drawing.balanced_labels(judging.judged, data.num_classes)
        self._judge = drawing.demo_judge(data.pixels(data.raw_train), judging.classifier)
        self.real = self._judge.score(data.pixels(data.raw_test), data.test_labels)
        self.columns = f"Each column is one class: {', '.join(self._names)}."
        self.about = (
            f"Samples: {judging.judged} per model, classes in turn, all from the same noise; {judging.sample}.",
            f"Judge: a small classifier shipped with this demo, which calls {self.real[ACCURACY]:.1%} of "
            f"{len(data.raw_test):,} held-out real images right. Class accuracy is the share of samples that it calls by "
            f"the class they were drawn for. The Fréchet distance compares its {self._judge.spec.features} features of the "
            f"samples with those of {len(data.raw_train):,} real training images; it is not the FID of papers, and only "
            "good for comparing rows of this table. Few samples raise it for all rows alike.",
        )

    def draw(self, model: Model, sample: SampleConfig | None = None) -> np.ndarray:
        """As in `Examiner`."""
        return self._decode(drawing.draw(model, self._labels, sample or self._judging.sample, label="samples"))

    def score(self, pixels: np.ndarray) -> Score:
        """As in `Examiner`."""
        return self._judge.score(pixels, self._labels)

    def grid(self, samples: np.ndarray) -> np.ndarray:
        """As in `Examiner`: a column for each class."""
        return labels.class_columns(samples, self._names, self._judging.shown)


class Scenes:
    """Examines models of words by held-out captions of scenes, as many of each category, and the judge of scenes."""

    measures, parts = (OVERALL, EXACTLY), PARTS
    ranked, kept, points = OVERALL, OVERALL, 5.0

    def __init__(self, judging: Judging, data: image_data.Images) -> None:
        self._judging = judging
        self._decode = image_data.decoder(data.config.latents)
        each = judging.judged // len(CATEGORIES)
        by_category = np.array(prompt_set(each), object).reshape(len(CATEGORIES), each)
        self._captions: list[Caption] = by_category.T.ravel().tolist()  # categories in turn
        real = [scene(i, "heldout") for i in range(REAL)]
        self.real = _of(np.stack([render(one) for one in real]), [one.caption for one in real])
        self.columns = f"Each column is one category of captions: {', '.join(part.title for part in PARTS)}."
        self.about = (
            f"Captions: {each} of each of GenEval's six categories, with combinations of words that training never sees, "
            f"the same for every model and all from the same noise; {judging.sample}.",
            "Judge: reads a picture back into things with kind, colour, place and size; a picture is right or wrong as a "
            "whole, by GenEval's rules. Overall is the mean of the six categories' shares. A picture is exact where it "
            "shows what its caption says and nothing else. "
            f"Of {REAL} real held-out scenes the judge finds {self.real[EXACTLY]:.1%} exact.",
            f"One picture is {1 / each:.0%} of a category here: its column is a hint, a sweep has the error bars.",
        )

    def draw(self, model: Model, sample: SampleConfig | None = None) -> np.ndarray:
        """As in `Examiner`."""
        words, how = ids([str(caption) for caption in self._captions]), sample or self._judging.sample
        return self._decode(drawing.draw_with(model, {"text": words}, how, label="samples"))

    def score(self, pixels: np.ndarray) -> Score:
        """As in `Examiner`."""
        return _of(pixels, self._captions)

    def grid(self, samples: np.ndarray) -> np.ndarray:
        """As in `Examiner`: a column for each category, the caption below each picture."""
        shown = len(CATEGORIES) * self._judging.shown
        captions = [str(caption) for caption in self._captions[:shown]]
        return labels.captioned(list(samples[: len(captions)]), captions, len(CATEGORIES))


def _of(pixels: np.ndarray, captions: Sequence[Caption]) -> Score:
    found = score_scenes(pixels, captions).scores
    return Score({one.key: found[one.key] for one in (OVERALL, EXACTLY, *PARTS) if one.key in found}, len(pixels))


def kind_of(config: image_data.DataConfig) -> type[Classes] | type[Scenes]:
    """Who examines models of such data."""
    return Scenes if config.source == SCENES else Classes


def check(judging: Judging, data: image_data.Images) -> None:
    """Raise `BadInput` where models of `data` cannot be examined so. No device is used."""
    scenes, kinds = kind_of(data.config) is Scenes, len(CATEGORIES)
    if scenes and judging.judged % kinds:
        raise BadInput(f"judging.judged: got {judging.judged}, expected a multiple of {kinds}, the categories of captions")
    if not scenes and not data.num_classes:
        raise BadInput(f"data.source {data.config.source!r}: captions, expected 'scenes' or images of classes")
