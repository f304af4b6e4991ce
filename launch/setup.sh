# shellcheck shell=bash
# Sourced by demo.sh and test.sh: makes .venv in the repository's root once, with graftax and the extras asked for.
#   setup TARGET      what pip installs: "." or ".[dev]"
# Python 3.11 or newer must be on the PATH (PYTHON=/path/to/python picks one); everything else is installed here.

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "graftax: error: no Python 3.11 or newer with venv found on the PATH, expected python3.11 or later (set PYTHON=...)" >&2
  return 2
}

setup() {
  local target="$1" python stamp
  # The stamp's name changes with pyproject.toml, so that a changed dependency installs again.
  stamp=".venv/.ready-${target//[^a-z]/}-$(cksum <pyproject.toml | cut -d' ' -f1)"
  if [[ ! -e "$stamp" ]]; then
    if [[ ! -x .venv/bin/python ]]; then
      python="$(find_python)"
      echo "Creating .venv with $python"
      "$python" -m venv .venv
    fi
    echo "Installing graftax and what it needs (about a minute) ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$target"
    touch "$stamp"
  fi
  export PATH="$PWD/.venv/bin:$PATH"
}
