"""The import contract: layers import one way, each outside library has its place, `import graftax` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "graftax"
CORE = {"errors", "progress", "spec"}
SURFACE = CORE | {"ops", "models", "surgery", "diffusion", "checkpoint"}
MAY_IMPORT = {
    "errors": set(),
    "progress": {"errors"},
    "spec": {"errors"},
    "ops": CORE,
    "models": CORE | {"ops"},
    "testing": CORE | {"ops", "models"},
    "diffusion": {"errors", "progress"},  # a model is a function to it
    "data": CORE,
    "checkpoint": CORE | {"ops", "models"},
    "surgery": CORE | {"ops", "models"},
    "api": SURFACE,
    "__init__": {"api"} | SURFACE,
    "train": SURFACE | {"data"},
    "distill": SURFACE | {"data", "train"},
    "evaluate": SURFACE | {"data", "train", "distill", "api", "testing"},
    "analyze": SURFACE | {"data", "train", "distill", "evaluate", "api", "testing"},
    "cli": SURFACE | {"data", "train", "distill", "evaluate", "analyze", "api"},
}
"""Parts of the package that each part may know, whether it imports them at the top or late."""

HOMES = {
    "orbax": {"checkpoint"},
    "etils": {"checkpoint"},
    "fsspec": {"checkpoint"},
    "safetensors": {"checkpoint"},
    "absl": {"cli"},
    "ml_collections": {"cli"},
    "torch": {"evaluate/bench"},
    "tensorflow": set(),
    "grain": {"data"},
    "array_record": {"data"},
    "tensorflow_datasets": {"data"},
    "timm": set(),
    "diffusers": {"evaluate/bench"},
}
"""Folders in which a library may be imported."""

PICKLES = {"pickle", "pickletools", "cloudpickle", "dill", "shelve", "marshal", "joblib"}


def imported(file):
    """Dotted names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = {file.relative_to(ROOT).as_posix(): set(imported(file)) for file in sorted(ROOT.rglob("*.py"))}
PARTS = {path.removesuffix(".py") if "/" not in path else path.split("/")[0] for path in FILES}


def part_of(path):
    return path.split("/")[0].removesuffix(".py")


def test_every_part_has_a_rule():
    assert PARTS - MAY_IMPORT.keys() == set()


@pytest.mark.parametrize("path", FILES)
def test_layers_import_one_way(path):
    known = {name.split(".")[1] for name in FILES[path] if name.startswith("graftax.")} & PARTS
    assert known - {part_of(path)} <= MAY_IMPORT[part_of(path)], path


def test_rules_have_no_circles():
    """Where a may know b, b must not know a."""
    for part, allowed in MAY_IMPORT.items():
        assert not {other for other in allowed if part in MAY_IMPORT[other]}, part


@pytest.mark.parametrize("library", HOMES)
def test_libraries_stay_at_home(library):
    users = {path for path, names in FILES.items() if any(name.split(".")[0] == library for name in names)}
    assert all(any(path.startswith(f"{home}/") for home in HOMES[library]) for path in users), users


def test_one_file_touches_pickles():
    users = [path for path, names in FILES.items() if names & PICKLES]
    assert len(users) <= 1
    assert all(path.startswith("checkpoint/") for path in users)


def test_import_is_light():
    heavy = ("torch", "tensorflow", "orbax", "safetensors", "ml_collections", "matplotlib", "tensorflow_datasets", "grain")
    code = f"import sys, graftax; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
