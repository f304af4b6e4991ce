"""Names of samplers, and of the ways in which they may differ."""

from __future__ import annotations

from typing import Literal

Sampler = Literal[
    "ddpm", "ddim", "dpmpp_2m", "sde_dpmpp_2m", "euler", "heun", "midpoint", "dopri5", "euler_maruyama", "sde_heun",
    "edm_heun",
]  # fmt: skip
Spacing = Literal["linspace", "time_uniform", "sd3", "tail"]
Last = Literal["zero", "sigma_min", "mean", "tweedie", "euler", "none"]
Weak = Literal["null", "model", "skip", "policy", "representation"]

SAMPLERS: dict[Sampler, str] = {
    "ddpm": "DDPM", "ddim": "DDIM", "dpmpp_2m": "DPM-Solver++ 2M", "sde_dpmpp_2m": "SDE-DPM-Solver++ 2M",
    "euler": "Euler", "heun": "Heun", "midpoint": "midpoint", "dopri5": "Dormand-Prince 5",
    "euler_maruyama": "Euler-Maruyama", "sde_heun": "stochastic Heun", "edm_heun": "EDM's Heun",
}  # fmt: skip
"""Names of samplers, and what papers call them."""
MULTISTEP: tuple[Sampler, ...] = ("dpmpp_2m", "sde_dpmpp_2m")
STRAIGHT: tuple[Sampler, ...] = ("euler", "heun", "midpoint")
ODES: tuple[Sampler, ...] = (*STRAIGHT, "dopri5")
SDES: tuple[Sampler, ...] = ("euler_maruyama", "sde_heun")
SPACINGS: tuple[Spacing, ...] = ("linspace", "time_uniform", "sd3", "tail")
LASTS: tuple[Last, ...] = ("zero", "sigma_min", "mean", "tweedie", "euler", "none")
WEAK: tuple[Weak, ...] = ("null", "model", "skip", "policy", "representation")
