"""Hyena-X distilled into every attention of the shipped DiT, to search for the best sites among them.

    graftax graft   --config configs/demo_search.py
    graftax distill --config configs/demo_search.py
    graftax search  --config configs/demo_search.py

Expect about two minutes on two CPU cores. The last lines name the best half of the sites, as edits.
"""

from common import demo
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of stage 1 at all sites; stage 2 fine-tunes whatever student it is given."""
    graft = {"edits": ("blocks[*].mixer=hyena_x(kernel=4)",), "seed": 0}
    return ConfigDict({**demo(), "workdir": "runs/demo_search", "graft": graft})
