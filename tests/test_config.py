"""Config files become frozen dataclasses: defaults, overrides of every type, refusals that name the key."""

import ast
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from graftax import config
from graftax.errors import BadInput
from graftax.study import drawing
from graftax.study.config import EXPERIMENTS, DemoConfig, experiment_of
from graftax.study.debate_config import DebateConfig
from graftax.study.pretrain import DiTPretraining, pretraining_of
from graftax.testing import tiny_spec

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    limit: int | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 1
    on: bool = False
    inner: Inner = field(default_factory=Inner)
    words: tuple[str, ...] = ()
    pair: tuple[int, int] = (1, 2)
    counts: tuple[int, ...] = ()


def built(*overrides, **tree):
    return config.build(Outer, config.read(None, overrides) | tree)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("count=3", Outer("x", count=3)),
        ("count=1e3", Outer("x", count=1000)),
        ("on=true", Outer("x", on=True)),
        ("on=False", Outer("x", on=False)),
        ("inner.rate=2", Outer("x", inner=Inner(rate=2.0))),
        ("inner.limit=5", Outer("x", inner=Inner(limit=5))),
        ("inner.limit=none", Outer("x", inner=Inner(limit=None))),
        ("inner={'rate': 3}", Outer("x", inner=Inner(rate=3.0))),
        ("words=blocks[1::2].mixer=hyena_x(kernel=4)", Outer("x", words=("blocks[1::2].mixer=hyena_x(kernel=4)",))),
        ("words=('a', 'b')", Outer("x", words=("a", "b"))),
        ("pair=(3, 4)", Outer("x", pair=(3, 4))),
        ("counts=[3, 4]", Outer("x", counts=(3, 4))),
        ("counts=3", Outer("x", counts=(3,))),
    ],
)
def test_overrides(override, expected):
    assert built(override, name="x") == expected


def test_text_stays_text():
    assert built("name=5") == Outer("5")
    assert built("name=a=b") == Outer("a=b")


def test_overrides_win_over_the_file_and_keep_its_other_keys(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("from ml_collections import ConfigDict\n"
                    "def get_config(): return ConfigDict({'name': 'f', 'inner': {'rate': 5.0, 'limit': 7}})\n")  # fmt: skip
    found = config.build(Outer, config.read(path, ["inner.rate=6", "count=2"]))
    assert found == Outer("f", count=2, inner=Inner(rate=6.0, limit=7))


def test_what_stands_behind_the_file_is_its_argument(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("def get_config(name='plain'): return {'name': name, 'count': 2}\n")
    assert config.build(Outer, config.read(f"{path}:a,10%", ["count=3"])) == Outer("a,10%", count=3)
    assert config.read(path)["name"] == "plain"
    with pytest.raises(BadInput, match="no such file"):
        config.read(f"{tmp_path}/d.py:a")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("cuont=3", "config.cuont: unknown key"),
        ("inner.rat=3", "config.inner.rat: unknown key"),
        ("count=x", "config.count: got 'x', expected an integer"),
        ("count=true", "config.count: got 'true', expected an integer"),
        ("count=none", "config.count"),
        ("inner.rate=fast", "config.inner.rate: got 'fast', expected a number"),
        ("on=7", "config.on: got '7', expected true or false"),
        ("inner=4", "config.inner: got '4', expected keys of Inner"),
        ("inner.rate.more=4", "config.inner.rate"),
        ("pair=(1, 2, 3)", "config.pair: got 3 values, expected 2"),
        ("pair=(1, 'b')", "config.pair[1]: got 'b', expected an integer"),
        ("words=3", "config.words"),
        ("=3", "expected --config.key=value"),
        ("a..b=3", "expected --config.key=value"),
    ],
)
def test_refusals(override, expected):
    with pytest.raises(BadInput) as error:
        built(override, name="x")
    assert expected in str(error.value)


def test_missing_key_is_named():
    with pytest.raises(BadInput, match=r"config\.name: missing"):
        built()


def test_errors_of_a_dataclass_say_where():
    tree = {"workdir": "w", "task": "dit", "model": {}, "training": {"loop": {"steps": -1}}}
    with pytest.raises(BadInput, match=r"config\.training\.loop: LoopConfig\.steps: got -1"):
        config.build(DiTPretraining, tree)


def test_the_position_table_is_not_trained_by_default():
    tree = {"workdir": "w", "task": "dit", "model": {}, "training": {"loop": {"steps": 1}}}
    assert config.build(DiTPretraining, tree).training.frozen_in(tiny_spec()) == ("pos_embed",)


@pytest.mark.parametrize("path", sorted({*CONFIGS.glob("*.py")} - {CONFIGS / "common.py"}), ids=lambda path: path.stem)
def test_shipped_configs_fit_their_schema_and_say_how_to_run(path):
    tree = config.read(path)
    if (kind := tree.get("kind")) in (drawing.KIND, "debate"):
        assert config.build(drawing.DrawingConfig if kind == drawing.KIND else DebateConfig, tree)
    else:
        assert pretraining_of(tree) if "task" in tree else experiment_of(tree, *EXPERIMENTS)
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f"configs/{path.name}" in text or path.stem == "demo_graft"
    assert "Expect" in text


def test_as_tree_can_be_built_again():
    tree = config.read(CONFIGS / "demo_graft.py")
    first = config.build(DemoConfig, tree)
    assert config.build(DemoConfig, config.as_tree(first)) == first
