"""Text-to-image pipelines as all verbs open them: a model of texts, what reads its prompts, and what decodes its latents.

All is in the one folder of a pipeline of diffusers; of other models the parts are named. Prompts are read first, and the
text encoder is let go of before the model comes to the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from graftax import api
from graftax.checkpoint.hub import called, is_hub
from graftax.checkpoint.hugging_face import PIPELINE
from graftax.data.pixels.decoding import Decode, resolve
from graftax.data.scenes.tokens import SceneWords
from graftax.data.text.encoding import TextEncoder
from graftax.data.text.memory import ReadTexts
from graftax.data.text.vocabulary import VOCABULARIES, reads_words, words_of
from graftax.errors import BadInput, naming
from graftax.evaluate.drawing import SampleConfig, guidance_of, whole_conditions
from graftax.evaluate.geneval import Prompt, bound, drawn_by
from graftax.evaluate.geneval.drawing import Draw
from graftax.evaluate.geneval.folder import Drawn
from graftax.evaluate.protocol import DIGITS, Protocol
from graftax.evaluate.run import decoder_name
from graftax.models import Model
from graftax.models.backbone import find
from graftax.nets.text_encoder import is_pipeline
from graftax.nets.tokenizer import check_prompts
from graftax.spec import ModelSpec, Option
from graftax.study.stages import open_to_draw


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A model that is ready to draw the prompts that it was opened with.

    Attributes:
        model: on the devices.
        texts: what the text encoder has made of the prompts.
        negative: the prompt that guidance leads away from.
        guidance: that the model is conditioned on; None where it takes none.
        reader: the text encoder's name and hash, for protocols.
        decode: from the model's arrays to pixels; None where there is no way.
    """

    model: Model
    texts: ReadTexts
    negative: str
    guidance: float | None
    reader: str
    decode: Decode | None

    def conditions(self, prompts: Sequence[str], shape: tuple[int, ...] | None = None) -> dict[str, np.ndarray]:
        """The model's conditions (b, ...) of some of the prompts, for images of `shape`, None: of the model's own."""
        return whole_conditions(self.model.spec, self.texts(prompts), shape, self.guidance)

    def null(self, shape: tuple[int, ...] | None = None) -> dict[str, np.ndarray]:
        """Likewise (1, ...) of the negative prompt."""
        return self.conditions([self.negative], shape)


def open_pipeline(
    name: str, prompts: Sequence[str], *, text_encoder: str | None = None, text_dtype: str | None = None,
    latents: str = "auto", negative: str = "", guidance: float | None = None,
    vet: Callable[[ModelSpec], object] = bool, overrides: Mapping[str, Option] | None = None,
) -> Pipeline:  # fmt: skip
    """The pipeline around the model `name`, with the prompts read.

    `text_encoder`: a folder as in `graftax.text_encoder`, None: in the model's own pipeline, or the vocabulary that a model
    of words says it reads; `text_dtype`: of its weights, None: as they are stored. `latents` as in `decoder_for`,
    `guidance` as in `guidance_of`; `vet` may refuse the model before any device is used. Raises `BadInput` where the model
    takes no texts, a part is missing or is another's, and where a prompt is empty.
    """
    if blank := [i for i, prompt in enumerate(check_prompts(prompts)) if not prompt.strip()]:
        raise BadInput(f"prompts[{blank[0]}]: empty, expected what the picture shows")

    def vet_texts(spec: ModelSpec) -> None:
        require_texts(name, spec)
        guidance_of(spec, guidance)
        vet(spec)

    def read(spec: ModelSpec) -> tuple[ReadTexts, str]:
        source = text_encoder or _own_encoder(name, spec)
        texts = _read(source, text_dtype, spec, [negative, *prompts])
        return texts, f"{called(Path(source))} {texts.sha256[:DIGITS]}"

    model, (texts, reader), decode = open_to_draw(name, read, latents=latents, vet=vet_texts, overrides=overrides)
    return Pipeline(model, texts, negative, guidance_of(model.spec, guidance), reader, decode)


def geneval(
    name: str, prompts: Sequence[Prompt], file: str, sampled: Callable[[ModelSpec], SampleConfig], each: int, *,
    text_encoder: str | None = None, text_dtype: str | None = None, latents: str = "auto",
    guidance: float | None = None, overrides: Mapping[str, Option] | None = None,
) -> tuple[Draw, Drawn]:  # fmt: skip
    """What draws GenEval's prompts, `each` pictures of one, with `graftax.evaluate.geneval.draw_folder`.

    `file`: what the prompts are called; `sampled`: how models of a spec are drawn. Raises `BadInput` as `open_pipeline`
    does, and where there is no decoder.
    """

    def vet(spec: ModelSpec) -> None:
        sampled(spec)
        if resolve(spec, latents, name) is None:
            raise BadInput(f"model {name}: its latents have no decoder here, expected --latents")

    texts = [prompt.text for prompt in prompts]
    pipeline = open_pipeline(
        name, texts, text_encoder=text_encoder, text_dtype=text_dtype, latents=latents, guidance=guidance, vet=vet,
        overrides=overrides,
    )  # fmt: skip
    model, config = pipeline.model, sampled(pipeline.model.spec)
    assert pipeline.decode is not None, "looked for by `vet`"
    protocol = Protocol(
        sampling=config.sampling, seed=config.seed, text=pipeline.reader, guidance=pipeline.guidance,
        decoder=decoder_name(model, latents, name),
    )  # fmt: skip
    draw = bound(model, pipeline.conditions, pipeline.decode, protocol, pipeline.null())
    return draw, drawn_by(called(Path(name)), model, protocol, prompts, file, each)


def require_texts(name: str, spec: ModelSpec) -> None:
    """Raise `BadInput` where a model takes no texts."""
    if spec.classes:
        raise BadInput(f"model {name}: takes one of {spec.classes} classes, expected --labels, or a model of texts")


def _own_encoder(name: str, spec: ModelSpec) -> str:
    """What reads a model's prompts where the user does not say."""
    if reads_words(spec):
        if not (vocabulary := spec.option("vocabulary", "")):
            known = " or ".join(VOCABULARIES)
            raise BadInput(f"text_encoder: missing, and {name} does not say whose words it reads; expected {known}")
        with naming(f"model {name}"):
            words_of(spec)
        return vocabulary
    if not is_hub(name) and not (Path(name) / PIPELINE).is_file():
        raise BadInput(f"text_encoder: missing, and {name} is no pipeline's folder; expected that of what embeds its texts")
    return name


def _read(source: str, dtype: str | None, spec: ModelSpec, prompts: Sequence[str]) -> ReadTexts:
    """The prompts as `source` reads them; nothing else is kept of it. Raises `BadInput` where the model takes no such."""
    # What is not said by a pipeline is as long as the model takes it.
    told = source in VOCABULARIES or reads_words(spec) or is_pipeline(source)
    length = None if told else spec.sizes.context or spec.sizes.text
    encoder: TextEncoder = api.text_encoder(source, max_length=length, dtype=dtype)
    if dtype is not None and isinstance(encoder, SceneWords):
        raise BadInput(f"text_dtype: got {dtype}, expected none for the words of {source}, which have no weights")
    texts = ReadTexts(encoder, prompts)
    cond = whole_conditions(spec, texts(prompts[:1]))
    with naming(f"text encoder {source}"):
        find(spec).check_inputs(
            spec, jnp.zeros((1, *spec.image_shape)), jnp.zeros(1), {k: jnp.asarray(v) for k, v in cond.items()}
        )
    return texts
