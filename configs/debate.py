"""The debate over DiT, tested: what has changed since, on small models from scratch at equal FLOPs, three seeds each.

    graftax sweep --config configs/debate.py                    every question, 2,000 steps of the plain model
    graftax sweep --config configs/debate.py:bc,8000            questions b and c, 8,000 steps
    graftax sweep --config configs/debate.py:a,500 --config.seeds="(0,1)"

The argument is QUESTIONS,STEPS:

    a  is DDPM behind flow matching?                    e  where should norms stand?
    b  is TREAD more than stochastic depth?             f  each piece of LightningDiT, alone and together
    c  does computing less in training help the end?    g  REPA, SRA, dispersive loss
    d  does adaLN-zero hold attention back?             h  DDT's encoder and decoder

The plain model is SiT in small: 6 blocks of width 64 on 16 tokens of garments, which predict velocities at evenly drawn
times. The page, runs/debate/QUESTIONS_STEPS/report.html, has each claim, who said it, what was measured, and a verdict: a
claim holds where the Fréchet distances' means differ by more than two standard errors, else it is not decidable at this
size. What these models decide holds for 0.5 M parameters and 16 tokens. REPA's target is the last feature map of the demo's
classifier, which is the judge too, for want of DINOv2's weights: `--config.data.features=FOLDER` names others, of 96 numbers
for each of 16 tokens.

Expect 114 minutes of one CPU core (an Intel Xeon with AVX-512) for every question at 600 steps, whose verdicts stand in
graftax/study/README.md, and by that 5 hours at 2,000 steps, 18 at 8,000. Interrupted, the same command continues.
"""

from typing import Any

from common import FASHION_MNIST, cosine, demo_judging

SIZES = {
    "input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 64, "depth": 6, "num_heads": 4, "num_classes": 10,
}  # fmt: skip
BARE = {**SIZES, "swiglu": False, "rope": False, "rmsnorm": False}
PLAIN = {"lightningdit": BARE}
"""LightningDiT with all that sets it apart switched off: SiT."""

PLAINLY = "flow, plain"
DEPTH = "stochastic_depth(0.65, mode=batch)"
"""Leaves out as much of a step as the route does."""


def edited(*edits: str) -> dict[str, Any]:
    """The plain model after edits of its spec."""
    return {**PLAIN, "edits": edits}


def placed(placement: str) -> dict[str, Any]:
    """Its norms elsewhere."""
    return edited(f"place_norms(blocks[*].norm, {placement}, norm=layer, soft=false)")


def with_recipe(recipe: str) -> dict[str, Any]:
    """Trained so."""
    return {**PLAIN, "recipe": recipe}


MODERN = {"times": "logit_normal(0, 1)", "objective": "none + direction(1)"}

ENTRANTS: dict[str, dict[str, Any]] = {
    PLAINLY: PLAIN,
    "DDPM": {"dit": SIZES},
    "logit-normal times": {**PLAIN, "times": "logit_normal(0, 1)"},
    "TREAD": with_recipe("tread(1, 4, 0.5)"),
    "stochastic depth by batch": with_recipe(DEPTH),
    "stochastic depth by image": with_recipe("stochastic_depth(0.2)"),
    "one modulation for all blocks": edited("replace(blocks[*].adaln, adaln_shared)"),
    "modulations of rank 8": edited("replace(blocks[*].adaln, adaln_lowrank(rank=8))"),
    "class by cross-attention": edited("class_tokens(blocks[*].adaln, keep=false)"),
    "sandwich norms": placed("sandwich"),
    "residual-post norms": placed("residual_post"),
    "post norms": placed("post"),
    "SwiGLU": {"lightningdit": {**BARE, "swiglu": True}},
    "RMSNorm": {"lightningdit": {**BARE, "rmsnorm": True}},
    "rotary positions": {"lightningdit": {**BARE, "rope": True}},
    "QK norm": {"lightningdit": {**BARE, "qk_norm": True}},
    "direction loss": {**PLAIN, "objective": "none + direction(1)"},
    "LightningDiT, all": {"lightningdit": SIZES, **MODERN},
    "REPA": with_recipe("repa(2, width=96, hidden=128)"),
    "SRA": with_recipe("sra(2, 4)"),
    "dispersive loss": with_recipe("dispersive(2)"),
    "DDT": {"ddt": {**SIZES, "encoder_blocks": 4}},
}

THREAD = 'the thread "DiT is wrong" (2025)'
REPLY = "Xie's reply to the thread (2025)"

CLAIMS: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("a", "Flow matching draws better than DDPM.", f"SiT (arXiv 2401.08740); {REPLY}", PLAINLY, "DDPM", ""),
    ("a", "Logit-normal times are better than uniform ones.", "SD3 (arXiv 2403.03206)", "logit-normal times", PLAINLY, ""),
    (
        "b",
        "TREAD is more than stochastic depth.",
        "TREAD (arXiv 2501.04765); the reply says it is like it, a regulariser",
        "TREAD",
        "stochastic depth by batch",
        "Both leave out a third of a step.",
    ),
    ("c", "Tokens that go around blocks in training help the end.", THREAD, "TREAD", PLAINLY, ""),
    ("c", "Blocks left out in training help the end.", REPLY, "stochastic depth by batch", PLAINLY, ""),
    ("c", "Branches dropped image by image help the end.", REPLY, "stochastic depth by image", PLAINLY, "Saves no FLOPs."),
    (
        "d",
        "One modulation for all blocks is better than adaLN-zero in each.",
        f"PixArt (arXiv 2310.00426); {REPLY}",
        "one modulation for all blocks",
        PLAINLY,
        "",
    ),
    ("d", "Narrow modulations are better than adaLN-zero.", THREAD, "modulations of rank 8", PLAINLY, ""),
    (
        "d",
        "A class that attention looks at is better than one in adaLN-zero.",
        f"{THREAD}; {REPLY}",
        "class by cross-attention",
        PLAINLY,
        "The time stays in the modulation: no model here is without any.",
    ),
    (
        "d",
        "Modulation per token is better than adaLN-zero.",
        "DDT (arXiv 2504.05741)",
        "DDT",
        PLAINLY,
        "With DDT's other parts.",
    ),
    (
        "e",
        "Sandwich norms are better than pre-norms.",
        THREAD,
        "sandwich norms",
        PLAINLY,
        "DiT has pre-norms, not post-norms.",
    ),
    ("e", "Norms behind branches are better than pre-norms.", THREAD, "residual-post norms", PLAINLY, ""),
    ("e", "Post-norms hurt.", THREAD, PLAINLY, "post norms", ""),
    *(
        ("f", f"There is a gain from {name} alone.", "LightningDiT (arXiv 2501.01423)", name, PLAINLY, "")
        for name in ("SwiGLU", "RMSNorm", "rotary positions", "QK norm", "logit-normal times", "direction loss")
    ),
    (
        "f",
        "There is a gain from all together.",
        "LightningDiT (arXiv 2501.01423)",
        "LightningDiT, all",
        PLAINLY,
        "Without QK norm, as released.",
    ),
    (
        "g",
        "REPA learns faster.",
        "REPA (arXiv 2410.06940)",
        "REPA",
        PLAINLY,
        "Unless the config names others, its target is the judge's own network, which favours it in accuracy and Fréchet "
        "distance: the held-out loss is free of that.",
    ),
    ("g", "SRA learns faster.", "SRA (arXiv 2505.02831)", "SRA", PLAINLY, ""),
    ("g", "Dispersive loss learns faster.", "dispersive loss (arXiv 2506.09027)", "dispersive loss", PLAINLY, ""),
    (
        "h",
        "An encoder of conditions and a decoder of velocities learn faster.",
        "DDT (arXiv 2504.05741)",
        "DDT",
        PLAINLY,
        "",
    ),
)
"""Question, claim, who said it, who is said to be ahead of whom, what to know beside."""

FIELDS = ("question", "text", "by", "better", "than", "note")


def debated(
    argument: str, entrants: dict[str, dict[str, Any]], claims: tuple[tuple[str, ...], ...], least: int = 1
) -> tuple[str, int, dict[str, Any]]:  # fmt: skip
    """QUESTIONS,STEPS as letters, a number of `least` or more, and the entrants and claims that these ask for; the first
    entrant is always there. A plain dict, since a ConfigDict would sort them."""
    questions, _, count = argument.partition(",")
    letters = "".join(dict.fromkeys(claim[0] for claim in claims))
    if not questions or set(questions) - set(letters) or not count.isdecimal() or int(count) < least:
        wanted = f"QUESTIONS,STEPS like bc,8000: letters of {letters}, {least} or more steps"
        raise ValueError(f"got {argument!r}, expected {wanted}")
    asked = tuple(dict(zip(FIELDS, claim, strict=True)) for claim in claims if claim[0] in questions)
    named = {next(iter(entrants)), *(claim[side] for claim in asked for side in ("better", "than"))}
    chosen = {name: entrant for name, entrant in entrants.items() if name in named}
    return questions, int(count), {"kind": "debate", "entrants": chosen, "claims": asked}


def get_config(argument: str = "abcdefgh,2000") -> dict[str, Any]:
    """Some questions at so many steps of the plain model."""
    questions, steps, debate = debated(argument, ENTRANTS, CLAIMS)
    return {
        **debate,
        "workdir": f"runs/debate/{questions}_{steps}",
        "training": {
            "loop": {"steps": steps, "log_every": 100, "save_every": 1000},
            "batch_size": 128,
            "optimiser": cosine(2e-3, steps // 16, steps),
            "ema_decay": 0.999,
            "ema_warmup": True,
            "class_dropout": 0.1,
        },
        "data": FASHION_MNIST,
        "seeds": (0, 1, 2),
        "judging": demo_judging(judged=1000, shown=2),
    }
