#!/usr/bin/env bash
# Sets up graftax with its development tools and runs linter, type checker and tests.
#   bash launch/test.sh [options of pytest]      e.g.  bash launch/test.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
setup ".[dev]"
# Its torchvision is neither needed nor wanted: beside the CPU build of PyTorch it keeps diffusers from importing.
python -m pip install --quiet --disable-pip-version-check --no-deps torch-fidelity==0.4.0
# Tests simulate several devices on the CPU, and their tolerances are those of float32 there.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
ruff check .
ruff format --check .
pyright
# Two workers fill two cores; --dist loadfile keeps what a file compiles in one process.
exec pytest -n 2 --dist loadfile "$@"
