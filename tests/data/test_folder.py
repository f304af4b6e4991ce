import numpy as np
import pytest
from PIL import Image

from graftax.data.folder import open_folder
from graftax.errors import BadInput


def test_sub_folders_are_classes_in_alphabetical_order(image_folder):
    found = open_folder(image_folder)
    assert found.class_names == ("ant", "bee", "cat")
    np.testing.assert_array_equal(np.bincount(found.labels), [7, 8, 9])
    assert len(found) == 24
    image, label = found.fetch(7)
    assert label == 1
    np.testing.assert_array_equal(image, np.asarray(Image.open(image_folder / "bee" / "0.png")))


def test_a_part_keeps_its_classes_and_has_a_digest_of_its_own(image_folder):
    found = open_folder(image_folder)
    part = found.take(np.array([9, 2]))
    assert (part.fetch(0)[1], part.fetch(1)[1], part.num_classes) == (1, 0, 3)
    np.testing.assert_array_equal(part.fetch(1)[0], found.fetch(2)[0])
    assert len({found.digest, part.digest, found.take(np.array([2, 9])).digest}) == 3
    assert open_folder(image_folder).digest == found.digest


def test_what_is_no_image_folder_is_refused(image_folder, tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        open_folder(tmp_path / "absent")
    with pytest.raises(BadInput, match="no sub-folders, expected one per class"):
        open_folder(image_folder / "ant")
    (tmp_path / "dog").mkdir()
    with pytest.raises(BadInput, match=r"dog: no images"):
        open_folder(tmp_path)
    (tmp_path / "dog" / "x.jpeg").write_bytes(b"\xff\xd8 not a picture")
    with pytest.raises(BadInput, match=r"dog/x\.jpeg: cannot be read"):
        open_folder(tmp_path).fetch(0)
