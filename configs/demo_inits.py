"""How scions start: every initialisation that an operator has, on the shipped DiT, before and after stage 1.

    graftax inits --config configs/demo_inits.py      a table, in runs/inits/table.md too

Half of the mixers become Hyena-X or sliding windows, or half of the MLPs become narrower or wider. Running again skips the
rows that are finished. Expect about 16 minutes on two quiet CPU cores, and at step 0 a relative error of 1.0 for random
scions, 0.45 to 0.85 for the same after least squares, below 0.4 for transplants and 0 for the MLP that got wider.
"""

from common import demo, demo_judging
from ml_collections import ConfigDict

GRAFTS = {
    "Hyena-X 50 %": ("blocks[50%].mixer", "hyena_x(kernel=4)", ("random",)),
    "SWA w=4 50 %": ("blocks[50%].mixer", "swa(window=4)", ("random", "transplant")),
    "MLP r=3 50 %": ("blocks[50%].mlp", "mlp(ratio=3.0)", ("random", "transplant")),
    "MLP r=6 50 %": ("blocks[50%].mlp", "mlp(ratio=6.0)", ("random", "transplant")),
}
BATCHES = 64  # of 32 images of 16 tokens: 32,768 tokens for at most 961 features


def get_config() -> ConfigDict:
    """Settings of the comparison."""
    config = demo(stage_1=1000)
    config["distill"] = {**config["distill"], "batch_size": 32, "log_every": 100}
    starts = {
        f"{name}, {init}{', least squares' if batches else ''}": {
            "edits": (f"replace({sites}, {op}, init={init})",), "least_squares": batches
        }
        for name, (sites, op, inits) in GRAFTS.items() for init in inits for batches in (0, BATCHES)
    }  # fmt: skip
    judging = demo_judging()
    # Stage 2 is not reached: it says how the held-out diffusion loss is computed.
    return ConfigDict({**config, "kind": "inits", "workdir": "runs/inits", "starts": starts, "judging": judging})
