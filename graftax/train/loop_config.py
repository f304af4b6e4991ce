"""How long the training loop runs, and what it writes when."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.errors import BadInput
from graftax.train.writers import check_writers

_LEAST = {"seed": 0, "log_every": 1, "eval_every": 0, "save_every": 0, "keep": 1, "keep_every": 0, "hang_seconds": 0}


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """What a loop of any length writes, in steps. Raises BadInput on values out of range, or if a writer's package is
    missing.

    Attributes:
        seed: of the order of the data and of all that steps draw.
        log_every: steps between two lines of metrics.
        eval_every: steps between two evaluations, 0: at the end only.
        save_every: steps between two checkpoints, likewise.
        keep: the newest so many checkpoints stay on disk.
        keep_every: those of every so many steps do too, 0: none.
        keep_best: so does the one with the best of this number, which evaluations give.
        best_is: "min" or "max" of it.
        hang_seconds: after so many without a finished step, stacks are shown and written to workdir (`Watchdog`), 0: never.
        hang_abort: the process then ends too.
        writers: where records go beside metrics.jsonl, "tensorboard" or "wandb".
        profile: first and last step to trace into workdir/profile.
    """

    seed: int = 0
    log_every: int = 50
    eval_every: int = 0
    save_every: int = 0
    keep: int = 2
    keep_every: int = 0
    keep_best: str | None = None
    best_is: str = "min"
    hang_seconds: int = 1800
    hang_abort: bool = False
    writers: tuple[str, ...] = ()
    profile: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise BadInput(f"LoopConfig.{name}: got {getattr(self, name)}, expected {least} or more")
        if self.best_is not in ("min", "max"):
            raise BadInput(f"LoopConfig.best_is: got {self.best_is!r}, expected 'min' or 'max'")
        if self.keep_best and self.save_every and (not self.eval_every or self.save_every % self.eval_every):
            raise BadInput(
                f"LoopConfig.save_every: got {self.save_every}, expected a multiple of eval_every ({self.eval_every}), "
                f"since keep_best compares checkpoints by their {self.keep_best}"
            )
        check_writers(self.writers)
        if self.profile and not 1 <= self.profile[0] <= self.profile[1]:
            raise BadInput(f"LoopConfig.profile: got {self.profile}, expected the first and the last step to trace, from 1")


@dataclass(frozen=True)
class LoopConfig(LoopOptions):
    """A loop that writes as its `LoopOptions` say. Raises BadInput on fewer than one step.

    Attributes:
        steps: updates.
    """

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadInput(f"LoopConfig.steps: got {self.steps}, expected 1 or more")
        super().__post_init__()

    def due(self, every: int, step: int) -> bool:
        """Whether something done `every` steps is due after `step` updates; all are due after the last."""
        return step == self.steps or (every > 0 and step % every == 0)
