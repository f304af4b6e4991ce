"""Results: kept whole, refused where changed or of different protocols."""

import dataclasses
import json

import pytest

from graftax.diffusion import Sampling
from graftax.errors import BadInput
from graftax.evaluate.protocol import Protocol
from graftax.evaluate.result import Result, by_space, check_comparable, environment, find_results, read_result
from graftax.models.cost import count_params, flops
from graftax.testing import tiny_spec

PROTOCOL = Protocol(sampling=Sampling(steps=10), count=100, features="demo classifier 12ab", reference="fashion_mnist")


def result(**changes) -> Result:
    fields = {
        "name": "demo", "model": "0123", "spec": tiny_spec(), "protocol": PROTOCOL,
        "scores": {"Fréchet": 0.25, "class accuracy": 0.9}, "environment": environment(),
    }  # fmt: skip
    return Result(**{**fields, **changes})


def test_round_trip_and_cost(tmp_path):
    path = result().save(tmp_path)
    assert path == tmp_path / "scores" / "demo-classifier-12ab.json"
    assert read_result(path) == result()
    assert result().cost == (count_params(tiny_spec()), flops(tiny_spec()))


def test_feature_spaces_have_files_of_their_own(tmp_path):
    other = result(protocol=dataclasses.replace(PROTOCOL, features="Inception 34cd"), scores={"FID": 3.0})
    result().save(tmp_path / "a")
    other.save(tmp_path / "a")
    found = find_results(tmp_path)
    assert list(found) == ["a/scores/demo-classifier-12ab", "a/scores/inception-34cd"]
    assert list(by_space(list(found.items()))) == ["demo classifier 12ab", "Inception 34cd"]
    check_comparable(list(found.items()))  # each alone in its space


def test_different_protocols_do_not_compare():
    other = result(protocol=dataclasses.replace(PROTOCOL, sampling=Sampling(steps=20)))
    with pytest.raises(BadInput, match=r"steps: 10 \(a\), 20 \(b\)"):
        check_comparable([("a", result()), ("b", other)])


def test_a_changed_or_foreign_file_is_refused(tmp_path):
    path = result().save(tmp_path)
    record = json.loads(path.read_text())
    record["protocol"]["steps"] = 20
    path.write_text(json.dumps(record))
    with pytest.raises(BadInput, match="changed since"):
        read_result(path)
    path.write_text("{}")
    with pytest.raises(BadInput, match="not a file of scores"):
        read_result(path)


@pytest.mark.parametrize("made", [True, False])
def test_folders_without_results_are_named(tmp_path, made):
    folder = tmp_path / "empty"
    if made:
        folder.mkdir()
    with pytest.raises(BadInput, match=r"empty: no (such folder|scores)"):
        find_results(folder)
