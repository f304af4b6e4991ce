"""`DistillConfig`: how scions learn, as one frozen value of JSON types. The defaults are the grafting paper's."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from graftax.distill.losses import LOSSES
from graftax.errors import BadInput
from graftax.models.plans import PLANS

PAPER_SAMPLES, PAPER_EPOCHS, PAPER_BATCH = 8_000, 200, 64
"""Stage 1 of arXiv 2506.05340: 200 epochs over 8,000 images in batches of 64."""

SCHEDULES = ("paper", "constant", "cosine")
MERGE_TARGETS = ("pair", "residual_sum")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class DistillConfig:
    """Optimiser, losses and precision of stage 1. Every site has its own AdamW and its own gradient clipping.

    Raises BadInput on values out of range.

    Attributes:
        steps: length of the whole run, which the schedule refers to.
        learning_rate: its peak.
        schedule: "paper" halves the rate after a quarter, a half and three quarters of the run (epochs 50, 100 and 150 of
            200 in the reference code of arXiv 2506.05340), "cosine" goes down to 0 at its end, "constant" stays.
        b1: decay of AdamW's first moment.
        b2: of its second.
        eps: AdamW's.
        weight_decay: acts on every leaf, as PyTorch's AdamW does.
        grad_clip: largest gradient norm of one site, None for no clipping.
        calibration: on how many batches `distill` first fits the last layer of every scion by least squares
            (`graftax.distill.calibrate`), 0 for not at all; `distill_job` does not.
        mixer_loss: "l1", "l2" or "huber" for all mixers of tokens; None leaves it to the operator (l1).
        mlp_loss: likewise of channel mixers (l2).
        step_loss: that of whole steps, merged ones (l1, as in the paper) and blocks that heal.
        merge_target: what calibration fits the projection of a merged step to: "pair", the output of its blocks one after
            the other, or "residual_sum", its input plus the change that each block makes of it.
        huber_delta: in the unit of the activations.
        dtype: matmul type of teacher and scions.
        plan: how the teacher's blocks are compiled (`graftax.models.forward`): "unroll" runs fastest, "auto" compiles
            fastest.
    """

    steps: int = PAPER_SAMPLES * PAPER_EPOCHS // PAPER_BATCH
    learning_rate: float = 1e-4
    schedule: str = "paper"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float | None = 10.0
    calibration: int = 0
    mixer_loss: str | None = None
    mlp_loss: str | None = None
    step_loss: str = "l1"
    merge_target: str = "pair"
    huber_delta: float = 1.0
    dtype: str = "float32"
    plan: str = "unroll"

    def __post_init__(self) -> None:
        self._require(self.steps >= 1, "steps", "1 or more")
        self._require(self.learning_rate > 0, "learning_rate", "a positive number")
        self._require(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}")
        self._require(0 <= self.b1 < 1, "b1", "a number in [0, 1)")
        self._require(0 <= self.b2 < 1, "b2", "a number in [0, 1)")
        self._require(self.eps > 0, "eps", "a positive number")
        self._require(self.weight_decay >= 0, "weight_decay", "0 or more")
        self._require(self.grad_clip is None or self.grad_clip > 0, "grad_clip", "a positive number or None")
        self._require(self.calibration >= 0, "calibration", "0 or more")
        for name in ("mixer_loss", "mlp_loss"):
            self._require(getattr(self, name) in (None, *LOSSES), name, f"one of {LOSSES} or None")
        self._require(self.merge_target in MERGE_TARGETS, "merge_target", f"one of {MERGE_TARGETS}")
        self._require(self.step_loss in LOSSES, "step_loss", f"one of {LOSSES}")
        self._require(self.huber_delta > 0, "huber_delta", "a positive number")
        self._require(self.dtype in DTYPES, "dtype", f"one of {DTYPES}")
        self._require(self.plan in PLANS, "plan", f"one of {PLANS}")

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise BadInput(f"DistillConfig.{name}: got {getattr(self, name)!r}, expected {expected}")

    def loss_of(self, role: str) -> str | None:
        """The loss of operators of a role, None where it is their own."""
        return {"channel": self.mlp_loss}.get(role, self.mixer_loss)

    def rate(self, count: jax.typing.ArrayLike) -> jax.Array:
        """Learning rate of the update that follows `count` earlier ones: () int -> () float32."""
        count = jnp.asarray(count)
        if self.schedule == "paper":
            return self.learning_rate * 0.5 ** jnp.minimum(4 * count // self.steps, 3).astype(jnp.float32)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / self.steps, 1.0)))
        return jnp.full_like(count, self.learning_rate, jnp.float32)

    def build(self) -> optax.GradientTransformation:
        """The optax chain for one site: clip by the site's gradient norm, then AdamW at `rate`."""
        adamw = optax.adamw(self.rate, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay)
        return adamw if self.grad_clip is None else optax.chain(optax.clip_by_global_norm(self.grad_clip), adamw)
