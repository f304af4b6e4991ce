"""The grafting paper's questions, asked of the shipped DiT; one part per argument, three seeds each.

    graftax sweep --config configs/demo_sweep.py            the paper's operators at several shares, and parallel pairs
    graftax sweep --config configs/demo_sweep.py:newer      operators that others have published since, as they best start
    graftax sweep --config configs/demo_sweep.py:choice     which half: interleaved, deep, local, or not local?
    graftax sweep --config configs/demo_sweep.py:ladder     self-grafting: how much data does it take?
    graftax sweep --config configs/demo_sweep.py:conditioning   one modulation for all blocks, a narrow one, RMS norms

Tables, pictures and samples are left in runs/sweep/PART/report.html. Each run gets 150 steps of distillation and 150 of
fine-tuning, batches of 64, and is judged three times by 300 samples: a fixed budget to compare with, not the best that
each can reach. The model has 10 blocks and a grid of 4 x 4 tokens, hence the small windows and states.

Expect half a minute to a minute per run on two quiet CPU cores, twice that of `moe` and three to six times of `gated_delta`:
31, 26, 4, 4 and 4 variants of three seeds. One seed for a quick look: --config.seeds="(0,)". Interrupted, the same command
continues.
"""

from typing import Any

from common import demo, demo_judging

MIXERS = {
    "hyena_x": "hyena_x(kernel=4)",
    "hyena_se": "hyena_se(kernel=4)",
    "hyena_y": "hyena_y(kernel=4)",
    "hyena_long": "hyena_long(kernel=4)",
    "hyena_2d": "hyena_2d(kernel=3)",
    "mamba2": "mamba2(d_state=16, headdim=8)",
    "mamba2 cross": "mamba2(d_state=16, headdim=8, scan=cross)",
    "swa": "swa(window=2)",
    "swa_2d": "swa_2d(window=1)",
}
MLPS = {
    "mlp ratio 3": "mlp(ratio=3)",
    "mlp ratio 6": "mlp(ratio=6)",
    "mlp_hyena_x": "mlp_hyena_x(kernel=4)",
    "mlp_hyena_x_split": "mlp_hyena_x_split(kernel=4)",
}
NEWER = {
    "linear": ("mixer", "linear", "transplant"),
    "gated_delta": ("mixer", "gated_delta", "transplant"),
    "gated_delta cross": ("mixer", "gated_delta(scan=cross)", "transplant"),
    "sla": ("mixer", "sla(block=4, topk=0.25)", "transplant"),
    "clear": ("mixer", "clear(radius=2)", "transplant"),
    "natten": ("mixer", "natten(window=1)", "transplant"),
    "gqa": ("mixer", "gqa(group=4)", "transplant"),
    "dico": ("mixer", "dico", "random"),
    "affine": ("mixer", "affine", "random"),
    "affine_mlp": ("mlp", "affine_mlp", "random"),
    "mlp_low_rank": ("mlp", "mlp_low_rank(rank=32)", "transplant"),
    "moe": ("mlp", "moe(experts=4, top=2)", "transplant"),
}
"""Where, what, and where its weights come from."""

CLOSED_FORM = 32
"""Batches of 64 images that least squares see: 32,768 tokens."""

STAGES = demo(150, 150, {"log_every": 50, "save_every": 50})

SHARES = {"50 %": "50%", "70 %": "75%", "100 %": "*"}
"""All but every fourth block are seven of ten here."""

PAPER = ("hyena_x", "swa", "mamba2", "mlp ratio 3")
"""Operators of the grafting paper, at all three shares; the others at half and whole."""

CHOICES = {"interleaved": "50%", "deep": "deep:50%", "top-local": "1:5,8", "low-local": "0,5:8,9"}
"""The last two as `graftax analyze demo --what locality` ranks them, the same for bands of 1 to 4 tokens."""


def get_config(part: str = "operators") -> dict[str, Any]:
    """Settings of one part; a plain dict, since a ConfigDict would sort the variants."""
    if part not in PARTS:
        raise ValueError(f"part {part!r}: expected one of {', '.join(PARTS)}")
    return {
        **STAGES,
        "kind": "sweep",
        "workdir": f"runs/sweep/{part}",
        "variants": PARTS[part](),
        "seeds": (0, 1, 2),
        "judging": demo_judging(judged=300, shown=2),
    }


def operators() -> dict[str, dict[str, Any]]:
    """Each operator at its shares, then the pairs, which start from trained weights and learn slowly."""
    sites = {
        **{name: ("mixer", text) for name, text in MIXERS.items()},
        **{name: ("mlp", text) for name, text in MLPS.items()},
    }
    grafts = {
        f"{name} {share}": {"edits": (f"blocks[{blocks}].{slot}={text}",)}
        for name, (slot, text) in sites.items()
        for share, blocks in SHARES.items()
        if name in PAPER or share != "70 %"
    }
    slowly = {**STAGES["distill"], "settings": {**STAGES["distill"]["settings"], "learning_rate": 5e-4}}
    pairs = {"edits": ("parallel_pairs()",), "distill": slowly}
    return {**grafts, "parallel pairs": pairs}


def newer() -> dict[str, dict[str, Any]]:
    """Each at half and whole; then linear maps in place of attention, fitted in closed form and hardly trained."""
    found: dict[str, dict[str, Any]] = {
        f"{name} {share}": {"edits": (f"replace(blocks[{blocks}].{slot}, {text}, init={init})",)}
        for name, (slot, text, init) in NEWER.items()
        for share, blocks in SHARES.items()
        if share != "70 %"
    }
    fitted = {"steps": 1, "learning_rate": 1e-9, "calibration": CLOSED_FORM}
    alone = {**STAGES["distill"], "settings": {**STAGES["distill"]["settings"], **fitted}}
    for share in ("50 %", "100 %"):
        found[f"affine {share}, least squares alone"] = {**found[f"affine {share}"], "distill": alone}
    return found


def choice() -> dict[str, dict[str, Any]]:
    """Hyena-X in five of ten mixers."""
    return {name: {"edits": (f"blocks[{blocks}].mixer=hyena_x(kernel=4)",)} for name, blocks in CHOICES.items()}


def ladder() -> dict[str, dict[str, Any]]:
    """All attention, then all MLPs, against fresh operators of the same kind; a tenth of the data, then all of it."""
    attention = {"edits": ("blocks[*].mixer=mha()",)}
    return {
        "attention, 10 % then 10 %": {**attention, "distill_subset": "10%", "finetune_subset": "10%"},
        "attention, 10 % then 50 %": {**attention, "distill_subset": "10%", "finetune_subset": "50%"},
        "attention, 10 % then all": {**attention, "distill_subset": "10%"},
        "MLPs, 10 % then all": {"edits": ("blocks[*].mlp=mlp(ratio=4)",), "distill_subset": "10%"},
    }


def conditioning() -> dict[str, dict[str, Any]]:
    """What modulates the blocks: fitted to the old modulation over all t and y, then fine-tuned; no images for stage 1."""
    edits = {
        "one table for all": "replace(blocks[*].adaln, adaln_shared)",
        "rank 32": "replace(blocks[*].adaln, adaln_lowrank(rank=32))",
        "rank 8": "replace(blocks[*].adaln, adaln_lowrank(rank=8))",
        "RMS norm": "replace(blocks[*].norm, rms_norm)",
    }
    return {name: {"edits": (edit,)} for name, edit in edits.items()}


PARTS = {"operators": operators, "newer": newer, "choice": choice, "ladder": ladder, "conditioning": conditioning}
