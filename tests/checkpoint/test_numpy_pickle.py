"""Pickled dictionaries of numpy arrays: everything numpy writes is read, nothing else, and nothing runs."""

import collections
import pickle
import random
import tracemalloc

import numpy as np
import pytest
from hostile_files import calls, entry, text, tuple_

from graftax.checkpoint.numpy_pickle import read_pickled_arrays
from graftax.errors import BadInput


def write(tmp_path, content, protocol=4):
    path = tmp_path / "weights.pickle"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


def refused(tmp_path, content, protocol=4):
    path = write(tmp_path, content, protocol)
    with pytest.raises(BadInput) as caught:
        read_pickled_arrays(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_that_numpy_writes(protocol, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        dtype: (100 * rng.standard_normal((3, 4, 2))).astype(dtype) for dtype in ("f2", "f4", "f8", "i1", "u1", "i8", "?")
    }
    arrays |= {
        "turned": arrays["f4"].T,
        "scalar": np.array(3.5),
        "none": np.zeros((0, 3)),
        "bytes": np.arange(256, dtype="u1"),
    }
    frozen = arrays["f8"].copy()
    frozen.flags.writeable = False
    found = read_pickled_arrays(write(tmp_path, {"a": {"b": arrays}, "c": collections.OrderedDict(d=frozen)}, protocol))
    assert list(found) == ["a", "c"]
    assert np.array_equal(found["c"]["d"], frozen)
    for name, array in arrays.items():
        read = found["a"]["b"][name]
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert np.array_equal(read, array)
        assert not read.flags.writeable


def test_names_of_numpy_1(tmp_path):
    pickled = pickle.dumps({"w": np.arange(3.0)}, 2)
    assert b"numpy._core.multiarray" in pickled
    found = read_pickled_arrays(write(tmp_path, pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")))
    assert found["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", calls("x"))
def test_what_would_run_is_refused(kind, tmp_path):
    refused(tmp_path, calls(tmp_path / "canary")[kind])
    assert not (tmp_path / "canary").exists()


class Stranger:
    pass


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([np.zeros(2)], "a list"),
        (np.zeros(2), "holds an array"),
        ({"a": 1.5}, "a float"),
        ({1: np.zeros(2)}, "key that is no text"),
        ({"a": Stranger()}, "not on the list"),
        ({"a": np.array([{}], object)}, "element type 'O8'"),
        ({"a": np.zeros(2, [("x", "f4")])}, "element type 'V4'"),
        ({"a": np.zeros(2, ">f4")}, "byte order '>'"),
        ({"a": np.zeros(2, complex)}, "element type 'c16'"),
        ({"a": np.float32(1)}, "not on the list"),
        (b"", "malformed"),
        (b"PK\x03\x04", "malformed"),
    ],
)
def test_other_content_is_refused(content, reason, tmp_path):
    assert reason in refused(tmp_path, content)


def test_arrays_must_have_the_bytes_of_their_shape(tmp_path):
    pickled = pickle.dumps({"w": np.arange(4, dtype="f4")}, 4)
    grown = pickled.replace(b"K\x01K\x04\x85", b"K\x01K\x05\x85")
    assert grown != pickled
    assert "malformed" in refused(tmp_path, grown)


def test_one_text_encoded_many_times_takes_no_memory(tmp_path):
    once = b"c_codecs\nencode\n" + tuple_(b"h\x00", text("latin1")) + b"R"
    bomb = b"\x80\x02(" + text("x" * 1_000_000) + b"q\x00" + once * 1000 + b"t."
    tracemalloc.start()
    assert "more bytes than the file has" in refused(tmp_path, bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


def test_random_damage_gives_arrays_or_bad_input(tmp_path):
    whole = pickle.dumps({"a": {"w": np.arange(6, dtype="f4").reshape(2, 3)}, "b": np.zeros(2)}, 4)
    draw, outcomes = random.Random(0), {"read": 0, "refused": 0}
    for _ in range(500):
        data = bytearray(whole)
        data[draw.randrange(len(data))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        try:
            assert isinstance(read_pickled_arrays(write(tmp_path, bytes(data))), dict)
            outcomes["read"] += 1
        except BadInput:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 25


def test_entry_is_a_valid_pickle_otherwise(tmp_path):
    """The refusals above are of the calls, not of how the pickles are built."""
    assert "a NoneType" in refused(tmp_path, entry(b"N"))
