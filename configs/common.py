"""What the experiments of this folder repeat: data, stages and sampling, of the shipped DiT and of the grafting paper.

Plain dicts and functions that make them; the configs beside import this file by its name. What a field means and what its
default is stands in the dataclasses: `graftax.study.config`, `graftax.data.config`, `graftax.distill.config`,
`graftax.train.config`.
"""

from __future__ import annotations

from typing import Any

FASHION_MNIST = {"source": "fashion_mnist", "size": 32, "latents": "demo"}
"""The images that the shipped DiT was trained on, as latents of its autoencoder."""


SCENES = {"source": "scenes", "size": 64}
"""Small pictures with captions, drawn as they are asked for."""


RECORDS = {"log_every": 20, "eval_every": 100}
"""What stages on the shipped DiT write, and when."""

SCENES_RECORDS = {"log_every": 2}
"""Likewise on the shipped model of scenes."""


def demo(stage_1: int = 300, stage_2: int = 300, records: dict[str, int] = RECORDS, **settings: Any) -> dict[str, Any]:
    """Teacher, data and both stages on the shipped DiT, so many steps of each; `settings` are those of stage 1."""
    return {
        "teacher": "demo",
        "data": FASHION_MNIST,
        "distill": {
            "settings": {"steps": stage_1, "learning_rate": 3e-3, "schedule": "cosine", **settings},
            "batch_size": 64, **records,
        },
        "finetune": {
            "loop": {"steps": stage_2, "seed": 1, **records},
            "batch_size": 64,
            "optimiser": cosine(5e-4, 20, stage_2),
            "ema_decay": 0.98,
        },
    }  # fmt: skip


def demo_judging(judged: int = 500, shown: int = 6) -> dict[str, Any]:
    """How models of the demo are sampled, and by how many samples they are judged."""
    sample = {"sampler": "ddim", "steps": 25, "cfg_scale": 1.5, "cfg_channels": None, "batch_size": 100}
    return {"sample": sample, "judged": judged, "shown": shown}


def scenes(stage_1: int, stage_2: int, batch: int = 32, records: dict[str, int] = SCENES_RECORDS) -> dict[str, Any]:
    """Teacher, data and both stages on the shipped model of scenes, so many steps of each, `batch` images in those of the
    second; its text encoder stays. The last layers of new operators start from a least-squares fit."""
    return {
        "teacher": "scenes",
        "data": {**SCENES, "latents": "scenes", "limit": 4000, "test_subset": "128"},
        "distill": {
            "settings": {"steps": stage_1, "learning_rate": 3e-3, "schedule": "cosine", "calibration": 8},
            "batch_size": 32, **records,
        },
        "finetune": {
            "loop": {"steps": stage_2, "seed": 1, **records},
            "batch_size": batch,
            "optimiser": cosine(3e-4, 5, stage_2),
            "ema_decay": 0.9,
            "frozen": ("words/.*",),
        },
    }  # fmt: skip


def adapters(finetune: dict[str, Any], rank: int = 8) -> dict[str, Any]:
    """Stage 2 by adapters (LoRA) on all kernels of the blocks, as long as `finetune` and at a rate ten times as high."""
    optimiser = {**finetune["optimiser"], "learning_rate": 10 * finetune["optimiser"]["learning_rate"]}
    return {
        "edits": (f"lora('blocks/.*', rank={rank})",),
        "finetune": {**finetune, "optimiser": optimiser, "frozen": ("(?!lora/).*",)},
    }


def scenes_pretraining(task: str, model: dict[str, Any], **training: Any) -> dict[str, Any]:
    """A model of words trained on scenes from scratch, the text encoder with it: one recipe for every family."""
    steps = 18_500
    words = {"words": 78, "vocabulary": "scenes", "text_width": 96, "text_tokens": 16, "text_blocks": 2, "text_heads": 4}
    return {
        "task": task,
        "data": {**SCENES, "limit": 200_000, "latents": "scenes"},
        "model": {"input_size": 16, "patch_size": 2, "in_channels": 4, **words, **model},
        "training": {
            "loop": pretraining(steps),
            "batch_size": 512,
            "optimiser": cosine(1e-3, 1000, steps),
            "ema_decay": 0.999,
            "ema_warmup": True,
            "class_dropout": 0.1,
            "compute_dtype": "bfloat16",
            **training,
        },
    }


def scenes_judging(judged: int, shown: int) -> dict[str, Any]:
    """How models of scenes are sampled, and by how many pictures they are judged."""
    sample = {"sampler": "dpmpp_2m", "steps": 12, "cfg_scale": 3.0, "cfg_channels": None, "batch_size": judged}
    return {"sample": sample, "judged": judged, "shown": shown}


def pretraining(steps: int) -> dict[str, int]:
    """The loop of a training from scratch."""
    return {"steps": steps, "seed": 0, "log_every": 100, "eval_every": 1000, "save_every": 1000}


def imagenet(task: str, variant: str, latents: str, chips: int, steps: int, batch: int, **training: Any) -> dict[str, Any]:
    """A published class model from scratch, at its true size, on so many chips of 16 GB or more, over which weights, moments
    and averages are split. `latents`: a folder of `graftax encode` with mirror images; `training`: fields of that stage.

    A chip takes 16 images at a time, and keeps of these what matrix products gave.
    """
    return {
        "task": task,
        "workdir": f"runs/{task}",
        "data": {"source": latents, "latents": "given", "transform": "flip"},
        "model": {"variant": variant},
        "mesh": {"fsdp": chips},
        "training": {
            "loop": {"steps": steps, "seed": 0, "log_every": 100, "save_every": 5000, "keep_every": 50_000},
            "batch_size": batch,
            "accumulate": max(1, batch // (16 * chips)),
            "ema_decay": 0.9999,
            "class_dropout": 0.1,
            "compute_dtype": "bfloat16",
            "remat": "dots",
            **training,
        },
    }


def cosine(learning_rate: float, warmup_steps: int, steps: int, **more: Any) -> dict[str, Any]:
    """An optimiser whose rate goes up and then down to 0 at the end, gradients clipped at 1."""
    return {
        "learning_rate": learning_rate, "warmup_steps": warmup_steps, "schedule": "cosine", "decay_steps": steps,
        "grad_clip": 1.0, **more,
    }  # fmt: skip


def paper(
    subset: str, steps: int, *, eval_every: int = 2500, halve_at: tuple[int, ...] = (), **stage_1: Any
) -> dict[str, Any]:  # fmt: skip
    """Teacher, data, devices and both stages of arXiv 2506.05340 on DiT-XL/2 at 256 pixels.

    Stage 1 is 200 epochs over 8,000 images in batches of 64, with `stage_1` among its settings; stage 2 is `steps` of 256
    images over the `subset` of ImageNet, evaluated every `eval_every`, its rate halved at `halve_at`.
    """
    return {
        "teacher": "DiT-XL-2-256x256.pt",
        "data": {
            "source": "imagenet256_latents", "latents": "given", "transform": "flip", "subset": subset,
            "test": "imagenet256_val_latents", "test_subset": "8k",
        },
        "distill_subset": "8k",
        "mesh": {"fsdp": 8},
        "distill": {
            "settings": {
                "steps": 25_000, "learning_rate": 1e-4, "schedule": "paper", "grad_clip": 10.0, "dtype": "bfloat16",
                **stage_1,
            },
            "batch_size": 64, "eval_every": 2500, "save_every": 2500,
        },
        "finetune": {
            "loop": {"steps": steps, "eval_every": eval_every, "save_every": 2500},
            "batch_size": 256,
            "optimiser": {"learning_rate": 1e-4, "warmup_steps": 1000, "halve_at": halve_at, "grad_clip": 10.0},
            "ema_decay": 0.9999,
            "class_dropout": 0.1,
            "compute_dtype": "bfloat16",
            "remat": "dots",
        },
    }  # fmt: skip


def healed_span(name: str, argument: str, teacher: str, source: str, batch: int) -> dict[str, Any]:
    """Blocks LO .. HI - 1 of a text-to-image model dropped and healed by the block before them, then the whole trained, on
    pairs that the teacher drew; weights split over 8 devices."""
    lo, _, hi = argument.partition(",")
    if not (lo.isdecimal() and hi.isdecimal() and 0 < int(lo) < int(hi)):
        raise ValueError(f"got {argument!r}, expected LO,HI, numbers of blocks with 0 < LO < HI, like 5,16")
    blocks = ", ".join(map(str, range(int(lo), int(hi))))
    records = {"eval_every": 500, "save_every": 500}
    return {
        "workdir": f"runs/{name}/{lo}_{hi}",
        "teacher": teacher,
        "graft": {"edits": (f"drop({blocks}, heal=before)",)},
        "data": {"source": source, "latents": "given", "held_out": 0.01, "test_subset": str(batch)},
        "mesh": {"fsdp": 8},
        "distill": {
            "settings": {
                "steps": 10_000, "learning_rate": 1e-4, "schedule": "paper", "grad_clip": 10.0, "dtype": "bfloat16",
                "plan": "auto",
            },
            "batch_size": batch, **records,
        },
        "finetune": {
            "loop": {"steps": 5_000, **records},
            "batch_size": 64,
            "accumulate": 64 // batch,
            "optimiser": {"learning_rate": 2e-5, "warmup_steps": 500, "grad_clip": 1.0},
            "ema_decay": 0.999,
            "class_dropout": 0.0,
            "compute_dtype": "bfloat16",
            "remat": "full",
        },
    }  # fmt: skip
