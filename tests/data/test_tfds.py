import json
import shutil
import sys

import numpy as np
import pytest
from tiny_set import image

from graftax.data.pipeline import Pixels, stream
from graftax.data.tfds import open_tfds
from graftax.errors import BadInput


def test_a_prepared_set_is_read_at_random(tfds_dir):
    found = open_tfds("tiny_set", tfds_dir)
    assert (found.name, len(found), found.class_names, found.channels) == ("tiny_set:1.0.0#train", 24, ("a", "b", "c"), 3)
    expected = [image("train", i) for i in range(24)]
    rows = [found.fetch(i) for i in range(24)]  # tensorflow-datasets shuffles while it prepares
    numbers = [next(j for j, e in enumerate(expected) if np.array_equal(e, found_image)) for found_image, _ in rows]
    assert sorted(numbers) == list(range(24))
    assert [label for _, label in rows] == [j % 3 for j in numbers] == found.labels.tolist()
    part = found.take(np.array([5, 3]))
    np.testing.assert_array_equal(part.fetch(0)[0], rows[5][0])
    np.testing.assert_array_equal(part.labels, [rows[5][1], rows[3][1]])
    assert part.digest != found.digest


def test_splits_and_parts_of_them(tfds_dir):
    assert len(open_tfds("tiny_set#test", tfds_dir)) == 6
    half = open_tfds("tiny_set:1.0.0#train[:50%]", tfds_dir)
    assert len(half) == 12
    assert half.digest != open_tfds("tiny_set", tfds_dir).take(np.arange(12)).digest
    with pytest.raises(BadInput, match="split 'valid'"):
        open_tfds("tiny_set#valid", tfds_dir)


def test_sets_that_are_not_prepared_are_refused(tfds_dir, tmp_path):
    with pytest.raises(BadInput, match=r"not prepared in .*cifar10.*tfds build cifar10 --file_format=array_record"):
        open_tfds("cifar10", tmp_path)
    with pytest.raises(BadInput, match="tfds:no_such_set: Dataset no_such_set not found"):
        open_tfds("no_such_set", tmp_path)
    with pytest.raises(BadInput, match=r"tfds:tiny_set:2\.0\.0"):
        open_tfds("tiny_set:2.0.0", tfds_dir)


def test_a_set_prepared_as_tfrecord_is_refused(tfds_dir, tmp_path):
    folder = tmp_path / "tiny_set" / "1.0.0"
    shutil.copytree(tfds_dir / "tiny_set" / "1.0.0", folder)
    for file in folder.glob("*array_record*"):
        file.rename(folder / file.name.replace("array_record", "tfrecord"))
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(BadInput, match="prepared as tfrecord, expected array_record"):
        open_tfds("tiny_set", tmp_path)


def test_reading_needs_no_tensorflow(tfds_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # importing it fails
    batch = next(stream(Pixels(open_tfds("tiny_set", tfds_dir), 16), 8, 0, threads=2))
    assert batch["image"].shape == (8, 16, 16, 3)
