"""What graftax brings is found by its name; what it does not bring yet is refused with the command that makes it."""

import pytest

import graftax
from graftax.checkpoint import shipped
from graftax.errors import BadInput
from graftax.nets import small


@pytest.fixture
def nothing_shipped(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "demo_path", lambda name: tmp_path / name)
    return tmp_path


@pytest.mark.usefixtures("nothing_shipped")
def test_what_is_not_there_is_refused_with_what_makes_it():
    line = "model 'scenes': not shipped yet: train it with `graftax train --config configs/scenes.py`"
    with pytest.raises(BadInput, match=line):
        graftax.load("scenes")
    with pytest.raises(BadInput, match=r"autoencoder 'scenes': .* configs/scenes_autoencoder\.py"):
        small.load_autoencoder("scenes")
    with pytest.raises(BadInput, match=r"model 'demo': .* configs/demo_dit\.py"):
        graftax.load("demo")


def test_names_stand_for_one_kind_each(nothing_shipped):
    assert shipped.is_shipped("scenes")
    assert not shipped.is_shipped("scenes", "classifier")
    with pytest.raises(BadInput, match="no such file"):
        small.load_classifier("scenes")
    (nothing_shipped / "scenes").mkdir()
    assert shipped.shipped_path("scenes") == nothing_shipped / "scenes"


def test_every_maker_is_a_config():
    from graftax.config import shipped as config

    assert all(config(f"configs/{name}.py").exists() for _, name in shipped.SHIPPED.values())
