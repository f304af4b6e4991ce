"""How pipelines of text-to-image models make conditions of prompts: which encoders read them, and what is kept of each.

A new pipeline is one class where none fits, and one line of `PIPELINES`. Sources: `encode_prompt` of diffusers' pipelines.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp

from graftax.checkpoint.hugging_face import CONFIG, PART, read_any_config
from graftax.checkpoint.members import shown
from graftax.errors import BadInput
from graftax.progress import say

if TYPE_CHECKING:
    from graftax.nets.text_encoder import TextEncoder

Cond = dict[str, jax.Array]
T5, CLIP = ("t5",), ("clip_text_model",)
SCHEDULER = "scheduler"
"""The folder of a pipeline's scheduler."""


@dataclass(frozen=True)
class Prompting:
    """What one T5 gives, and which of it is text: PixArt's, and that of a T5 by itself.

    `encoders`, kinds of encoders by `model_type`: those that a pipeline has, in the order of its folders.

    Attributes:
        length: tokens to which prompts are padded and cut; CLIP has its own number.
        lower: whether they are put in lower case and stripped of the space around them.
    """

    length: int
    lower: bool = False
    encoders: ClassVar[tuple[tuple[str, ...], ...]] = (T5,)
    optional: ClassVar[int] = 0
    """How many of the last encoders may be missing."""

    def at(self, root: Path, max_length: int | None) -> Prompting:
        """The same for the pipeline in a folder, `max_length` None: as many tokens as it says. Raises `BadInput`."""
        return dataclasses.replace(self, length=max_length or self.length)

    def check(self, encoders: Sequence[TextEncoder]) -> None:
        """Raise `BadInput` where the encoders do not fit each other."""

    def cond(self, prompts: Sequence[str], encoders: Sequence[TextEncoder]) -> Cond:
        """Conditions (b, ...) of prompts: `text` (b, m, d), `text_mask` (b, m) int32, 1 at tokens."""
        (t5,) = encoders
        ids, mask = t5.tokenize(prompts)
        return {"text": t5.ids(ids, mask)["last"], "text_mask": t5.place(mask)}


@dataclass(frozen=True)
class OneCLIP(Prompting):
    """Of a CLIP by itself: `text`, `text_mask` and `pooled` (b, d), not projected."""

    encoders: ClassVar = (CLIP,)

    def cond(self, prompts: Sequence[str], encoders: Sequence[TextEncoder]) -> Cond:
        (clip,) = encoders
        ids, mask = clip.tokenize(prompts)
        found = clip.ids(ids)
        return {"text": found["last"], "text_mask": clip.place(mask), "pooled": found["pooled"]}


@dataclass(frozen=True)
class AuraFlow(Prompting):
    """Of one UMT5: `text`, zero at padding. The network takes no mask."""

    encoders: ClassVar = (("umt5", "t5"),)

    def cond(self, prompts: Sequence[str], encoders: Sequence[TextEncoder]) -> Cond:
        found = super().cond(prompts, encoders)
        return {"text": found["text"] * found["text_mask"][..., None]}


@dataclass(frozen=True)
class Flux(Prompting):
    """`text` of a T5, `pooled` of a CLIP. Padding is text like any other, to the T5 too."""

    encoders: ClassVar = (CLIP, T5)

    def at(self, root: Path, max_length: int | None) -> Prompting:
        """Half as many tokens for the distilled model, schnell: the one whose scheduler does not shift by image size."""
        if max_length:
            return super().at(root, max_length)
        path = root / SCHEDULER / "scheduler_config.json"
        try:
            shifts = json.loads(path.read_text())["use_dynamic_shifting"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            expected = "its use_dynamic_shifting, which tells schnell's 256 tokens from dev's 512, or max_length"
            raise BadInput(f"{path}: no scheduler's config ({shown(repr(error))}), expected {expected}") from None
        return super().at(root, self.length if shifts else self.length // 2)

    def cond(self, prompts: Sequence[str], encoders: Sequence[TextEncoder]) -> Cond:
        clip, t5 = encoders
        text, pooled = (one.ids(one.tokenize(prompts)[0]) for one in (t5, clip))
        return {"text": text["last"], "pooled": pooled["pooled"]}


@dataclass(frozen=True)
class StableDiffusion3(Prompting):
    """`text` of two CLIPs, side by side and padded with zeros to the T5's width, then that of the T5; `pooled` of the CLIPs.

    Of the CLIPs what their last block but one returns, and the projected vectors. Without a T5 zeros stand in its place.
    Padding is text like any other.

    Attributes:
        width: of texts where there is no T5, else 0.
    """

    width: int = 0
    encoders: ClassVar = (CLIP, CLIP, T5)
    optional: ClassVar = 1

    def at(self, root: Path, max_length: int | None) -> Prompting:
        found = super().at(root, max_length)
        if (root / "text_encoder_3" / CONFIG).is_file():
            return found
        if not (root / PART / CONFIG).is_file():
            raise BadInput(f"{root}: no text_encoder_3/{CONFIG}, nor {PART}/{CONFIG}, which would say how wide texts are")
        width = read_any_config(root / PART).get("joint_attention_dim")
        if not isinstance(width, int) or width < 1:
            raise BadInput(f"{root / PART / CONFIG}: joint_attention_dim {width!r}, expected how wide texts are")
        say(f"{root}: no text_encoder_3, zeros stand for its texts")
        return dataclasses.replace(found, width=width)

    def check(self, encoders: Sequence[TextEncoder]) -> None:
        width, clips = self.width or encoders[2].spec.d_model, encoders[:2]
        for i, clip in enumerate(clips):
            if "projection" not in clip.params:
                raise BadInput(f"text_encoder{'_2' * i}: no text_projection, expected a CLIPTextModelWithProjection")
        if len({clip.spec.max_position_embeddings for clip in clips}) > 1:
            raise BadInput("text_encoder_2: texts of another length than text_encoder's, expected the same")
        if (needed := sum(clip.spec.hidden_size for clip in clips)) > width:
            raise BadInput(f"text_encoder_3: width {width}, expected at least {needed}, that of both CLIPs")

    def cond(self, prompts: Sequence[str], encoders: Sequence[TextEncoder]) -> Cond:
        clips, t5 = encoders[:2], encoders[2:]
        both = [clip.ids(clip.tokenize(prompts)[0], hidden=True) for clip in clips]
        short = jnp.concatenate([one["hidden"][-2] for one in both], -1)  # (b, 77, 768 + 1280)
        longs = [one.ids(one.tokenize(prompts)[0])["last"] for one in t5]
        long = longs[0] if longs else jnp.zeros((len(short), self.length, self.width))  # (b, m, d)
        short = jnp.pad(short, ((0, 0), (0, 0), (0, long.shape[-1] - short.shape[-1])))
        pooled = jnp.concatenate([one["projected"] for one in both], -1)
        return {"text": jnp.concatenate([short, long], 1), "pooled": pooled}


PIPELINES = {
    "PixArtSigmaPipeline": Prompting(300, lower=True),
    "PixArtAlphaPipeline": Prompting(120, lower=True),
    "StableDiffusion3Pipeline": StableDiffusion3(256),
    "FluxPipeline": Flux(512),
    "AuraFlowPipeline": AuraFlow(256),
}
"""By class. diffusers' PixArt also takes addresses, HTML and the like out of prompts where bs4 and ftfy are installed; where
they are not, it does what is done here."""
