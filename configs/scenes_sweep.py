"""The paper's questions, asked of the model of scenes, which has 64 tokens; three seeds each.

    graftax sweep --config configs/scenes_sweep.py                 which half, and does it collapse without attention?
    graftax sweep --config configs/scenes_sweep.py:adapters        what does a stage 2 of adapters alone cost?

- Does 100 % collapse? Rows "100 %" beside the teacher. In DiT-XL/2 they do; on the demo's 16 tokens they do not.
- Is interleaved ahead of deep? Rows "interleaved" beside "deep". The paper has FID 2.74 and 4.00.
- What does LoRA cost? Rows "all weights" beside "rank 8", "rank 32". The paper's PixArt is tuned at rank 64.
- Which categories break first? The table by category: position and counting need tokens to look far.

Tables, charts with error bars and pictures are left in runs/scenes_sweep/PART/report.html. Each run gets 300 steps of
distillation and 200 of fine-tuning, batches of 32, and is judged three times by 240 pictures: a fixed budget to compare
with, not the best that each can reach. Interrupted, the same command continues.

12 and 12 variants of three seeds; nobody has run it yet. Expect minutes per run on two CPU cores. One seed for a
quick look: --config.seeds="(0,)".
"""

from typing import Any

from common import adapters, scenes, scenes_judging

MIXERS = {
    "hyena_x": "hyena_x(kernel=4)",
    "hyena_2d": "hyena_2d(kernel=3)",
    "swa_2d": "swa_2d(window=1)",
    "mamba2": "mamba2(d_state=16, headdim=42)",
}
SHARES = {"50 % interleaved": "50%", "50 % deep": "deep:50%", "100 %": "*"}
STAGES = scenes(300, 200, records={"log_every": 50, "save_every": 100})
RANKS = (8, 32)


def get_config(part: str = "operators") -> dict[str, Any]:
    """Settings of one part; a plain dict, since a ConfigDict would sort the variants."""
    if part not in PARTS:
        raise ValueError(f"part {part!r}: expected one of {', '.join(PARTS)}")
    return {
        **STAGES,
        "kind": "sweep",
        "workdir": f"runs/scenes_sweep/{part}",
        "variants": PARTS[part](),
        "seeds": (0, 1, 2),
        "judging": scenes_judging(judged=240, shown=2),
    }


def operators() -> dict[str, dict[str, Any]]:
    """Each operator in half of the blocks, interleaved or the last ones, and in all."""
    return {
        f"{name} {share}": {"edits": (f"blocks[{blocks}].mixer={mixer}",)}
        for name, mixer in MIXERS.items()
        for share, blocks in SHARES.items()
    }


def lora() -> dict[str, dict[str, Any]]:
    """Two operators at two shares, with all weights tuned in stage 2, or adapters alone."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("hyena_x", "hyena_2d"):
        for share in ("50 % interleaved", "100 %"):
            edit = f"blocks[{SHARES[share]}].mixer={MIXERS[name]}"
            found[f"{name} {share}, all weights"] = {"edits": (edit,)}
            for rank in RANKS:
                adapted = adapters(STAGES["finetune"], rank)
                found[f"{name} {share}, rank {rank}"] = {**adapted, "edits": (edit, *adapted["edits"])}
    return found


PARTS = {"operators": operators, "adapters": lora}
