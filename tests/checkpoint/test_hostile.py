"""The hostile corpus: every file refused with one line, nothing run, memory bounded."""

import pickle
import random
import tracemalloc

import pytest
from hostile_files import CORPUS, archive, calls, entry, integer, storage, tensor, text

from graftax.checkpoint.torch_reader import read_torch
from graftax.errors import BadInput

MEMORY = 64 << 20


@pytest.mark.parametrize("kind", calls("x"))
def test_the_attacks_are_real(kind, tmp_path):
    """Python's own unpickler falls for each of them: the corpus can fail."""
    canary = tmp_path / "canary"
    try:
        pickle.loads(calls(canary)[kind])
    finally:
        assert canary.exists()


@pytest.mark.parametrize("kind", CORPUS)
def test_refused(kind, tmp_path):
    path, canary = tmp_path / "model.pt", tmp_path / "canary"
    CORPUS[kind](path, canary)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput) as caught:
            read_torch(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250
    assert not canary.exists()
    assert peak < MEMORY


def test_the_same_file_without_malice_is_read(tmp_path):
    """What the corpus varies is accepted as such, so the refusals are of what each file varies."""
    archive(tmp_path / "model.pt", entry(tensor()))
    assert read_torch(tmp_path / "model.pt")["w"].tolist() == [0, 1, 2, 3]


def test_reasons_name_the_culprit(tmp_path):
    expected = {
        "os_system": "posix.system",
        "storage_key_traversal": "etc/passwd",
        "zip_bomb": "compressed",
        "truncated": "truncated",
        "old_torch_format": "exhausted",
        "big_endian": "big",
        "extension_registry": "EXT1",
        "unknown_global": "torch.hub.load",
        "storage_larger_than_member": "data/0",
    }
    for kind, words in expected.items():
        path = tmp_path / f"{kind}.pt"
        CORPUS[kind](path, tmp_path / "canary")
        with pytest.raises(BadInput, match=words):
            read_torch(path)


def test_huge_memo_index_takes_no_memory(tmp_path):
    """Python's unpickler would allocate a table of that length."""
    archive(tmp_path / "model.pt", entry(text("x") + b"r\xff\xff\xff\x7f"))
    tracemalloc.start()
    assert read_torch(tmp_path / "model.pt") == {"w": "x"}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY


def test_many_references_to_one_list_stay_one_list(tmp_path):
    """Billion laughs: 30 lists, each holding the one before ten times."""
    laughs = b"]q\x00"
    for level in range(1, 31):
        laughs += b"](" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 9 + b"eq" + bytes([level])
    archive(tmp_path / "model.pt", b"\x80\x02(" + laughs + b"tq\xff0}" + text("w") + b"h\x1es.")
    with pytest.raises(BadInput, match="POP"):
        read_torch(tmp_path / "model.pt")
    archive(tmp_path / "model.pt", b"\x80\x02}" + text("first") + b"(" + laughs + b"ts" + text("w") + b"h\x1es.")
    laughing = read_torch(tmp_path / "model.pt")["w"]
    assert len(laughing) == 10
    assert all(item is laughing[0] for item in laughing)


def test_missing_and_special_files_are_refused(tmp_path):
    for path in (tmp_path / "absent.pt", tmp_path, "/dev/zero"):
        with pytest.raises(BadInput):
            read_torch(path)


def test_random_damage_gives_a_dict_or_bad_input(tmp_path):
    """Flipped bytes anywhere, the weights included: never another exception."""
    draw, path = random.Random(0), tmp_path / "model.pt"
    archive(
        path, entry(tensor(storage(), shape=(2, 2), strides=(2, 1)) + b"0" + integer(3)).replace(b"0J", b"sX\x01\0\0\0kJ")
    )
    whole, outcomes, longest = path.read_bytes(), {"read": 0, "refused": 0}, 0
    assert set(read_torch(path)) == {"w", "k"}
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 1, 1, 3))):
            data[draw.randrange(len(data))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        path.write_bytes(bytes(data[: draw.randrange(len(data))]) if draw.random() < 0.1 else bytes(data))
        try:
            assert isinstance(read_torch(path), dict)
            outcomes["read"] += 1
        except BadInput as error:
            outcomes["refused"] += 1
            longest = max(longest, len(str(error).splitlines()))
    assert longest == 1
    assert min(outcomes.values()) > 50
