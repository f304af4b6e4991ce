"""Compile the steps of a graft from shapes into jax's cache, then run them on arrays; for test_kept.py.

Prints as JSON which programs the cache holds of each function before the run, and which behind it.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np

from graftax.diffusion import Sampling
from graftax.distill import DistillConfig, distill
from graftax.distill.steps import regression_units
from graftax.evaluate.aot import sample_program, stage1_program, train_program
from graftax.evaluate.spread import spread
from graftax.models import Model
from graftax.surgery import graft, replace
from graftax.testing import random_params, tiny_spec
from graftax.train import DiffusionConfig, LoopConfig, MeshConfig, finetune

BATCH, SAMPLING = 8, Sampling(sampler="ddim", steps=2, cfg_scale=1.5)
STAGE_1, STAGE_2 = DistillConfig(steps=2), DiffusionConfig(loop=LoopConfig(2), batch_size=BATCH, compute_dtype="bfloat16")


def entries() -> dict[str, list[str]]:
    """Names of programs in the cache, by what they are of."""
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    return {name: sorted(p.name for p in folder.glob(f"jit_{name}-*-cache")) for name in ("step", "update", "draw")}


def main() -> None:
    """Both stages on a mesh with weights split, drawing with whole weights on all devices, as `graftax evaluate` does."""
    teacher = Model(tiny_spec(), random_params(tiny_spec(), jax.random.key(0)))
    student = graft(teacher, replace("blocks[1].mixer", "hyena_x"), rng=jax.random.key(1))
    split, whole = MeshConfig(fsdp=2), MeshConfig()
    stages = (
        stage1_program(teacher.spec, student.spec, regression_units(student, None), STAGE_1, BATCH),
        train_program("stage 2", student.spec, STAGE_2),
    )
    for program in stages:
        program.trace(split.build(), split.rules).lower().compile()
    draw = sample_program(student.spec, BATCH, SAMPLING, dtype="bfloat16")
    draw.trace(whole.build(), whole.rules).lower().compile()
    ahead = entries()

    size, classes = (BATCH, *teacher.spec.image_shape), teacher.spec.classes
    data = {"image": np.ones(size, np.float32), "label": np.arange(BATCH, dtype=np.int32) % classes}
    where = {"mesh": split.build(), "rules": split.rules, "show": False}
    taught, _ = distill(teacher, student, data, STAGE_1, batch_size=BATCH, **where)
    tuned, _ = finetune(taught, data, STAGE_2, **where)
    spread(tuned, SAMPLING, 0, BATCH, "bfloat16").draw(0, {"y": data["label"]})
    print(json.dumps([ahead, entries()]))


if __name__ == "__main__":
    main()
