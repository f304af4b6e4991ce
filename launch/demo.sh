#!/usr/bin/env bash
# Sets up graftax and runs the main job: graft the shipped model, distil, fine-tune, sample, score, report.
#   bash launch/demo.sh [options of `graftax demo`]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
setup "."
exec graftax demo "$@"
