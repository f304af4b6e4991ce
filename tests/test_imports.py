"""The import contract: layers import one way, each outside library has its place, `import graftax` stays light."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOT = REPOSITORY / "graftax"
CORE = {"allocator", "errors", "interrupts", "paths", "platforms", "progress", "spec", "spec_checks"}
NETWORK = CORE | {"ops", "blocks", "models"}
FILES_AND_DATA = NETWORK | {"surgery", "checkpoint", "nets", "diffusion", "data"}
TRAINING = FILES_AND_DATA | {"train", "distill", "api", "draw", "reusing"}
JUDGING = TRAINING | {"backbones", "evaluate"}
STUDIES = JUDGING | {"analyze", "config", "study"}
MAY_IMPORT = {
    "errors": set(),
    "interrupts": set(),
    "platforms": set(),
    "allocator": {"platforms"},
    "progress": {"errors"},
    "lazy": set(),
    "paths": set(),
    "config": {"errors"},
    "spec_checks": {"errors"},
    "spec_version_1": set(),
    "spec_prediction": {"errors", "spec_checks"},
    "spec": {"errors", "spec_checks", "spec_prediction", "spec_version_1"},
    "ops": CORE,
    "blocks": CORE | {"ops"},
    "models": CORE | {"ops", "blocks"},
    "surgery": NETWORK | {"checkpoint"},  # an edit may be in a file
    "backbones": NETWORK | {"surgery", "nets", "lazy"},
    "checkpoint": NETWORK,  # it asks the layouts of backbones that it knows by name alone
    "nets": CORE | {"checkpoint"},
    "diffusion": {"errors", "paths", "progress", "spec"},  # a model is a function to it, and what it predicts a value
    "data": CORE | {"checkpoint", "nets"},
    "train": FILES_AND_DATA,
    "distill": FILES_AND_DATA | {"train"},
    "reusing": FILES_AND_DATA,
    "draw": FILES_AND_DATA | {"train", "reusing"},
    "api": FILES_AND_DATA | {"train", "draw"},
    "__init__": FILES_AND_DATA | {"api"},
    "evaluate": TRAINING | {"backbones"},
    "analyze": JUDGING,
    "study": JUDGING | {"analyze", "config"},
    "pages": STUDIES,
    "cli": STUDIES | {"pages"},
    "testing": NETWORK | {"backbones"},
}
"""Parts of the package that each part may know, whether it imports them at the top or late."""

GENERIC = ("ops", "blocks", "models", "surgery", "distill", "train")
"""Parts that serve every backbone and so know none."""

HOMES = {
    "orbax": {"checkpoint"},
    "etils": {"checkpoint"},
    "fsspec": {"checkpoint"},
    "huggingface_hub": {"checkpoint"},
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
    "transformers": set(),
    "tokenizers": {"nets"},
    "diffrax": {"diffusion"},
}
"""Folders in which a library may be imported."""

PICKLES = {"pickle", "pickletools", "cloudpickle", "dill", "shelve", "marshal", "joblib"}

LONGEST = 400
"""Lines of a module."""

LARGEST_CLI = 2600
"""Lines of the command line, which calls what others do."""


def imported(text, file):
    """Dotted names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


TEXTS = {file.relative_to(ROOT).as_posix(): file.read_text() for file in sorted(ROOT.rglob("*.py"))}
FILES = {path: set(imported(text, path)) for path, text in TEXTS.items()}
PARTS = {path.removesuffix(".py") if "/" not in path else path.split("/")[0] for path in FILES}


def part_of(path):
    return path.split("/")[0].removesuffix(".py")


def code_of(notebook):
    """The Python in a notebook."""
    cells = json.loads(notebook.read_text())["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines()]
    magic = [line.lstrip().startswith(("%", "!")) for line in lines]
    return "\n".join(
        line[: len(line) - len(line.lstrip())] + "pass" if is_magic else line
        for line, is_magic in zip(lines, magic, strict=True)
    )


def test_every_part_has_a_rule():
    assert set(MAY_IMPORT) == PARTS


@pytest.mark.parametrize("path", FILES)
def test_layers_import_one_way(path):
    known = {name.split(".")[1] for name in FILES[path] if name.startswith("graftax.")} & PARTS
    assert known - {part_of(path)} <= MAY_IMPORT[part_of(path)], path


def test_rules_have_no_circles():
    """Where a may know b, b must not know a."""
    for part, allowed in MAY_IMPORT.items():
        assert not {other for other in allowed if part in MAY_IMPORT[other]}, part


def test_what_is_generic_knows_no_backbone():
    for path, names in FILES.items():
        if part_of(path) in GENERIC:
            assert not [name for name in names if name.startswith("graftax.backbones")], path
    assert not any("backbones" in MAY_IMPORT[part] for part in GENERIC)


def test_nothing_but_the_command_line_imports_it():
    others = {path: names for path, names in FILES.items() if part_of(path) != "cli"}
    for folder in ("configs", "launch"):
        others |= {str(file): set(imported(file.read_text(), file)) for file in (REPOSITORY / folder).rglob("*.py")}
    notebooks = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
    assert notebooks
    others |= {str(file): set(imported(code_of(file), file)) for file in notebooks}
    for path, names in others.items():
        assert not [name for name in names if name.split(".")[:2] == ["graftax", "cli"]], path


def test_nothing_but_tests_imports_the_help_for_tests():
    users = [path for path, names in FILES.items() if any(name.startswith("graftax.testing") for name in names)]
    assert all(path.startswith("testing/") for path in users), users


def private_names(text):
    """Underscore names of other modules of the package that a file takes."""
    tree, aliases = ast.parse(text), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("graftax"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names if is_private(alias.name))
            aliases |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(tree):
        taken = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
        if taken and is_private(node.attr):
            yield f"{node.value.id}.{node.attr}"


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def test_private_names_stay_in_their_module():
    found = {path: names for path, text in TEXTS.items() if (names := list(private_names(text)))}
    assert not found


def test_modules_are_short():
    long = {path: count for path, text in TEXTS.items() if (count := len(text.splitlines())) > LONGEST}
    assert not long
    assert sum(len(text.splitlines()) for path, text in TEXTS.items() if part_of(path) == "cli") < LARGEST_CLI


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
