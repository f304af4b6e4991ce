"""The notebooks: what readers of the committed files get, and that every cell runs, shortened, from top to bottom."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from graftax.checkpoint.shipped import is_there

FOLDER = Path(__file__).parents[2] / "notebooks"
SHORT = ("02_surgery",)
OF_SCENES = ("05_text_to_image", "06_layers_as_painters")
LONG = ("01_tour", "03_distil_finetune", "04_painters_locality", *OF_SCENES, "07_modern_dit")
NAMES = (*SHORT, *LONG)
SMOKE = "GRAFTAX_SMOKE"


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest) -> Path:
    return FOLDER / f"{request.param}.ipynb"


@pytest.fixture
def book(path: Path) -> Any:
    found = nbformat.read(path, as_version=4)
    nbformat.validate(found)
    return found


def code(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def outputs(book: Any) -> Iterator[Any]:
    for cell in code(book):
        yield from cell.outputs


def test_every_notebook_is_tested() -> None:
    assert sorted(file.stem for file in FOLDER.glob("*.ipynb")) == sorted(NAMES)


def test_short_and_half_of_it_words(book: Any) -> None:
    words = sum(cell.cell_type == "markdown" for cell in book.cells)
    assert len(book.cells) <= 25
    assert words / len(book.cells) >= 0.45


def test_it_opens_in_colab_installs_itself_and_names_its_device(path: Path, book: Any) -> None:
    first, (install, device, *rest) = book.cells[0].source, code(book)
    assert first.startswith("# ")
    assert "colab-badge.svg" in first
    assert path.name in first
    assert re.search(r"^SOURCE = .* # @param", install.source, re.MULTILINE)
    assert "%pip install --quiet" in install.source
    assert "default_backend" in device.source
    assert re.search(r"^SEED = \d+  # @param", device.source, re.MULTILINE)
    everything = "\n".join(cell.source for cell in (install, device, *rest))
    assert not re.search(r"git clone|chdir|%cd", everything)


def test_committed_outputs_are_of_one_whole_run_without_errors(path: Path, book: Any) -> None:
    assert path.stat().st_size <= 300_000
    assert [cell.execution_count for cell in code(book)] == list(range(1, len(code(book)) + 1))
    found = list(outputs(book))
    assert sum("image/png" in output.get("data", {}) for output in found) >= 2
    assert all(output.output_type != "error" and "Traceback" not in output.get("text", "") for output in found)
    assert not re.search(r"/home/|/root/|/work/|/tmp/", path.read_text())


def test_what_it_imports_is_there_and_meant_for_python(book: Any) -> None:
    tree = ast.parse("\n".join(re.sub(r"(?m)^( *)%.*", r"\1pass", cell.source) for cell in code(book)))
    found = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    own = [line for line in found if re.match(r"(from|import) graftax\b", line)]
    assert own
    for line in own:
        assert "graftax.cli" not in line
        exec(line, {})


@pytest.mark.slow
@pytest.mark.parametrize("path", [*SHORT, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)], indirect=True)
def test_all_cells_run(path: Path, book: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem in OF_SCENES and not (is_there("scenes") and is_there("scenes", "autoencoder")):
        pytest.skip("the model of scenes is not shipped yet")
    monkeypatch.setenv(SMOKE, "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    drawn = sum("image/png" in output.get("data", {}) for output in outputs(book))
    NotebookClient(book, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert sum("image/png" in output.get("data", {}) for output in outputs(book)) == drawn
