"""What the grafts of a plan for the shipped DiT learn, and how well the plan ranks them.

    graftax plan demo --flops 0.95 --config configs/demo_plan.py
    graftax plan demo --flops 0.95 --config configs/demo_plan.py --check 3
    graftax distill --config runs/demo_plan/plan_1.py

Every operator is taught by 150 steps of stage 1 before its harm is measured. Expect half a minute each on two quiet CPU
cores. With --check all grafts that reach the goal, two or so per operator, go through 150 steps of both stages with three
seeds: expect a minute per run, and in the last line the rank correlation of predicted harm with what fine-tuning left (0.98
with the held-out loss, 0.84 with the Fréchet distance, for the seven operators named in graftax/study/README.md).
Interrupted, the same command continues. `graftax plan demo --flops 0.95` alone needs no data.
"""

from common import demo, demo_judging
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Data, stages and judging; the plan chooses the edits."""
    stages = demo(150, 150, {"log_every": 50, "save_every": 50})
    judging = demo_judging(judged=300, shown=2)
    return ConfigDict({**stages, "kind": "demo", "workdir": "runs/demo_plan", "graft": {}, "others": (), "judging": judging})
