"""Where the numbers and pictures of a run go: JSON lines always, TensorBoard and Weights & Biases where asked for.

All writers have the call shape of clu.metric_writers, whose own writers import tensorflow. Names are "SPLIT/NAME", like
"train/loss". Each is opened at the step that a run resumes from, and sees to it that what an earlier run wrote of later
steps does not show up twice.
"""

from __future__ import annotations

import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clu import asynclib, platform

from graftax.checkpoint.paths import WorkPath, is_remote, work_path
from graftax.errors import BadInput
from graftax.train.record import Images, JsonLines, Scalars, Writer, local_folder, upload


class TensorBoard:
    """Event files in folder/tensorboard, by tensorboardX.

    A resumed run starts a file that tells TensorBoard to forget the points beyond `step` of the files before it.
    """

    def __init__(self, folder: WorkPath, step: int) -> None:
        from tensorboardX import SummaryWriter

        # Files are read in the order of their names, which begin with the second: two of one second need more.
        suffix = f".{time.time_ns()}"
        self._folder = folder / "tensorboard"
        self._local = local_folder(self._folder)
        self._events = SummaryWriter(str(self._local), purge_step=step + 1, filename_suffix=suffix)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """One point per name."""
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def write_images(self, step: int, images: Images) -> None:
        """One picture or one row of pictures per name."""
        for name, image in images.items():
            batch = image if image.ndim == 4 else image[None]
            self._events.add_images(name, batch, step, dataformats="NHWC")

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """What TensorBoard's HParams page shows. Not `add_hparams`, which would make it a second run beside this one."""
        from tensorboardX.summary import hparams as summaries

        writer = self._events.file_writer
        assert writer is not None
        for summary in summaries(dict(hparams), {}):
            writer.add_summary(summary)

    def flush(self) -> None:
        """Put what waits into the file."""
        self._events.flush()
        upload(self._local, self._folder)

    def close(self) -> None:
        """Flush, close the file."""
        self._events.close()
        upload(self._local, self._folder)


class WandB:
    """A Weights & Biases run, by default of project "graftax" (the environment's WANDB_PROJECT and WANDB_MODE count).

    Its id stays in folder/wandb_id, so that a resumed run continues it. W&B takes no second row for a step it has: after
    a resumption the points beyond `step` stay those of the run that was cut off.
    """

    def __init__(self, folder: WorkPath, step: int) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        name = folder / "wandb_id"
        if not name.exists():
            name.write_text(uuid.uuid4().hex)
        self._wandb = wandb
        project = None if "WANDB_PROJECT" in os.environ else "graftax"
        local = None if is_remote(folder) else str(folder)
        self._run = wandb.init(project=project, id=name.read_text(), resume="allow", dir=local, name=folder.name)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """One row, or part of the row that `step` has already."""
        self._run.log(dict(scalars), step=step)

    def write_images(self, step: int, images: Images) -> None:
        """A list of images per name."""
        rows = {name: image if image.ndim == 4 else image[None] for name, image in images.items()}
        self._run.log({name: [self._wandb.Image(one) for one in row] for name, row in rows.items()}, step=step)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """The run's config."""
        self._run.config.update(dict(hparams), allow_val_change=True)

    def flush(self) -> None:
        """Nothing: wandb sends rows by itself."""

    def close(self) -> None:
        """Send the rest, end the run."""
        self._run.finish()


class Several:
    """Writers as one: `swift` ones return at once, `slow` ones may wait for networks and work in a thread, in order. An
    error of theirs is raised by a later call."""

    def __init__(self, swift: Sequence[Writer], slow: Sequence[Writer] = ()) -> None:
        self._swift, self._slow = swift, slow
        self._pool = asynclib.Pool("metrics", max_workers=1)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """To all."""
        self._each("write_scalars", step, scalars)

    def write_images(self, step: int, images: Images) -> None:
        """To all."""
        self._each("write_images", step, images)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """To all."""
        self._each("write_hparams", hparams)

    def flush(self) -> None:
        """Return when everything written so far has left this process."""
        self._each("flush", then=self._pool.join)

    def close(self) -> None:
        """Flush and close all."""
        self._each("close", then=self._pool.close)

    def _each(self, method: str, *args: Any, then: Callable[[], object] = bool) -> None:
        for writer in self._swift:
            getattr(writer, method)(*args)
        try:
            for writer in self._slow:
                self._pool(getattr(writer, method))(*args)
            then()
        except asynclib.AsyncError as error:
            raise error.__cause__ or error from None  # what went wrong there: a full disk is one here too


WRITERS: dict[str, tuple[Callable[[WorkPath, int], Writer], str]] = {
    "tensorboard": (TensorBoard, "tensorboardX"),
    "wandb": (WandB, "wandb"),
}
"""Writers beside the JSON lines: (folder, step to resume from) -> writer, and the package that each needs."""


def check_writers(names: Sequence[str]) -> None:
    """Raise `BadInput` where a name is unknown, or its package is not installed: then it says which extra to install."""
    for name in names:
        if name not in WRITERS:
            raise BadInput(f"writers: got {name!r}, expected any of {', '.join(WRITERS)} (JSON lines are always written)")
        package = WRITERS[name][1]
        if importlib.util.find_spec(package) is None:
            raise BadInput(f"writers: {name!r} needs the package {package}, expected: pip install 'graftax[{name}]'")


def open_writers(names: Sequence[str], workdir: str | os.PathLike[str], step: int) -> Writer:
    """JSON lines and the named writers in `workdir`, for a run that has done `step` updates. Raises as `check_writers`."""
    check_writers(names)
    folder = work_path(workdir)
    # Launchers that give clu a work unit of theirs show where the run is; by itself clu only logs it.
    platform.work_unit().create_artifact(platform.ArtifactType.DIRECTORY, str(folder), "workdir")
    lines, others = JsonLines(folder, step), [WRITERS[name][0](folder, step) for name in names]
    return Several([], [lines, *others]) if is_remote(folder) else Several([lines], others)
