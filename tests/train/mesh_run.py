"""Script: a few steps of small models on meshes over up to 8 simulated devices; prints what came out as JSON.

mesh_run.py few: one model on one device and on 8; many: on other meshes, in bfloat16; operators: blocks of every kind;
streams: operators of a text and an image; recipes: with all that a training may do besides, each on a model of its own.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# Only equality is tested, so code is compiled quickly and runs slowly.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from every_recipe import OPTIMISER, SIZES, Fixed, cases

import graftax
from graftax.backbones.dit import dit_spec
from graftax.backbones.flux import flux_spec
from graftax.errors import BadInput
from graftax.models import Model
from graftax.ops.base import Params
from graftax.spec import op
from graftax.surgery import compose, graft, lora, replace
from graftax.testing import random_params
from graftax.train import LoopConfig, MeshConfig, OptimiserConfig, diffusion_loss, fit, train_job, training_tree
from graftax.train.sharding import AxisRules, to_host
from graftax.train.sharding_report import sharding_report

FROZEN = ("pos_embed",)


def run(model: Model, mesh: MeshConfig | None = None, devices: int = 8, accumulate: int = 1, **options: Any) -> dict:
    """A training of a model."""
    frozen = tuple(name for name in FROZEN if name in model.params)
    tree, loss = training_tree(model.spec, model.params, frozen), diffusion_loss(model.spec, **options)
    return trained(tree, loss, Fixed(), mesh, devices, accumulate, frozen)


def trained(
    tree: Params, loss: Any, data: Fixed, mesh: MeshConfig | None, devices: int = 8, accumulate: int = 1,
    frozen: tuple[str, ...] = (),
) -> dict:  # fmt: skip
    """A training of three steps: what it logged, what it left, how it lies."""
    records: list = []
    built = mesh.build(jax.devices()[:devices]) if mesh else None
    job = train_job(
        lambda: tree, loss, OPTIMISER, frozen=frozen, ema_decay=0.5, mesh=built, accumulate=accumulate,
        **({"rules": mesh.rules} if mesh else {}),
    )  # fmt: skip
    state = fit(job, data, LoopConfig(steps=3, log_every=1), on_record=records.append, show=False)
    report = sharding_report(state, built) if built else None
    ema = to_host(state.ema)
    return {
        "losses": [record["loss"] for record in records],
        "norms": [record["grad_norm"] for record in records],
        "ema": float(sum(np.abs(x).sum(dtype=np.float64) for x in jax.tree.leaves(ema))),
        "types": sorted({str(x.dtype) for x in jax.tree.leaves((state.trainable, state.ema))}),
        "share": report.device_bytes / report.total_bytes if report else 1,
        "parts": [_part(tree) for tree in (state.trainable, state.ema, *_moments(state.opt_state))],
    }


def _moments(opt_state: Any) -> list[Any]:
    found = jax.tree.leaves(opt_state, is_leaf=lambda s: hasattr(s, "mu"))
    return next([s.mu, s.nu] for s in found if hasattr(s, "mu"))


def _part(tree: dict) -> float:
    kernel = max(jax.tree.leaves(tree.get("blocks", tree)), key=lambda x: x.size)
    return kernel.addressable_shards[0].data.size / kernel.size


def refusal(mesh: MeshConfig, size: int) -> str:
    try:
        job = train_job(lambda: {"w": np.ones(3)}, lambda p, b, k: (p["w"].sum(), {}), OptimiserConfig(), mesh=mesh.build())
        fit(job, Fixed(size), LoopConfig(steps=1), show=False)
    except BadInput as error:
        return str(error)
    return ""


def plain() -> Model:
    spec = dit_spec(depth=1, **SIZES)
    return Model(spec, random_params(spec, jax.random.key(0)))


def few() -> dict:
    model = plain()
    runs = {
        "one": run(model),
        "all": run(model, MeshConfig(data=2, fsdp=2, tensor=2), accumulate=2, remat="full"),
    }
    meshes = {MeshConfig(): 12, MeshConfig(fsdp=3): 16, MeshConfig(tensor=0): 16}
    return {"runs": runs, "refused": [refusal(mesh, size) for mesh, size in meshes.items()], "loaded": loaded()}


def loaded() -> dict:
    """The shipped model read to the shards of a mesh: what a device has of a kernel, and whether it is the whole's."""
    mesh = MeshConfig(fsdp=4, tensor=2).build()
    params, whole = graftax.load("demo", dtype="bfloat16", mesh=mesh).params, graftax.load("demo", dtype="bfloat16").params
    kernel = params["blocks"]["07"]["mlp"]["fc1"]["kernel"]
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), params, whole)
    shapes = {shard.data.shape for shard in kernel.addressable_shards}
    return {"whole": kernel.shape, "shards": [*shapes], "type": str(kernel.dtype), "same": all(jax.tree.leaves(same))}


def recipes() -> dict:
    """On one device, and on 8: blocks that are left out for a batch in pieces too."""
    found, mesh = {}, MeshConfig(data=2, fsdp=2, tensor=2)
    for name, case in cases().items():
        one, all_ = (trained(case.tree(), case.loss(), case.data(), built) for built in (None, mesh))
        found[name] = {"one": one, "all": all_}
    batch = cases()["batch"]
    found["batch"]["pieces"] = trained(batch.tree(), batch.loss(), batch.data(), mesh, accumulate=2)
    return found


def many() -> dict:
    model = plain()
    return {
        "one": run(model),
        "data": run(model, MeshConfig(), 2),
        "both": run(model, MeshConfig(data=2, fsdp=2), 4),
        "fsdp": run(model, MeshConfig(fsdp=8), accumulate=2),
        "tensor": run(model, MeshConfig(tensor=4), remat="dots"),
        "tokens": run(model, MeshConfig(fsdp=2, tensor=2, rules=AxisRules(tokens="tensor"))),
        "bfloat16": run(model, MeshConfig(fsdp=4), dtype=jnp.bfloat16, accumulate=2, remat="dots"),
    }


def operators() -> dict:
    spec = dit_spec(depth=17, **SIZES)
    kinds = ["hyena_x", "mamba2", "swa", "hyena_se", "hyena_long", "hyena_2d", "swa_2d", "clear", "linear", "affine"]
    kinds += ["gqa", "natten", "dico", "gated_delta", op("sla", block=4, topk=0.5), op("swa_2d_normed", window=1)]
    edits = [replace(f"blocks[{i}].mixer", kind) for i, kind in enumerate(kinds, start=1)]
    edits += [
        replace("blocks[3].mlp", "moe"),
        replace("blocks[4].mlp", "mlp_low_rank", rank=16),
        replace("blocks[1].mlp", "mlp_hyena_x"),
        replace("blocks[2].mlp", "mlp", ratio=2),
        lora("blocks[0].mixer", rank=4),
    ]
    base = Model(spec, random_params(spec, jax.random.key(0)))
    model = graft(base, compose(*edits), jax.random.key(1))
    model = model.replace(params=random_params(model.spec, jax.random.key(2)))
    return {"one": run(model, plan="unroll"), "all": run(model, MeshConfig(data=2, fsdp=2, tensor=2), plan="unroll")}


def streams() -> dict:
    """Flux's blocks, of two streams and of one, with operators on the grid behind a text."""
    sizes = {"input_size": 8, "in_channels": 4, "hidden_size": 64, "num_heads": 4}
    spec = flux_spec(**sizes, double=3, single=5, text_width=6, text_tokens=5, pooled_width=4)
    joint = ["joint_hyena_2d", op("joint_swa_2d", window=1, qk_norm="rms"), op("joint_clear", radius=2, qk_norm="rms")]
    edits = [replace(f"double[{i}].attn", kind) for i, kind in enumerate(joint)]
    single = ["hyena_2d", op("swa_2d", window=1), op("natten", window=1), op("swa_2d_normed", window=1, bias="in")]
    edits += [replace(f"single[{i}].mixer", kind) for i, kind in enumerate(single)]
    model = graft(Model(spec, random_params(spec, jax.random.key(0))), compose(*edits), jax.random.key(1))
    options = {"plan": "unroll", "class_dropout": 0.0}
    return {"one": run(model, **options), "all": run(model, MeshConfig(data=2, fsdp=2, tensor=2), **options)}


if __name__ == "__main__":
    modes = {"few": few, "many": many, "operators": operators, "streams": streams, "recipes": recipes}
    print(json.dumps(modes[sys.argv[1]]()))
