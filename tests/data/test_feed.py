"""Data in every form that people have it, as the batches that training takes."""

import json

import grain
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.data.feed import as_batches
from graftax.data.pipeline import batches
from graftax.errors import BadInput
from graftax.testing import tiny_spec, tiny_text_spec

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.standard_normal((12, 8, 8, 4)).astype(np.float32), np.arange(12) % 10
READY = [{"image": IMAGES[i : i + 4], "label": LABELS[i : i + 4]} for i in (0, 4, 8)]
"""Three batches of 4."""

SPEC = tiny_spec()


class Repeatable:
    """An iterable that counts how often it was begun."""

    def __init__(self, items):
        self.items, self.begun = items, 0

    def __iter__(self):
        self.begun += 1
        return iter(self.items)


def firsts(feed, count):
    """Labels of the next `count` batches."""
    return [np.asarray(next(feed)["label"]).tolist() for _ in range(count)]


@pytest.mark.parametrize("form", ["dict", "pair"])
def test_arrays_are_shuffled_every_epoch_and_resume(form):
    data = {"image": IMAGES, "label": LABELS} if form == "dict" else (IMAGES, LABELS)
    feed, expected = as_batches(data, 4, 3, SPEC), batches({"image": IMAGES, "label": LABELS.astype(np.int32)}, 4, 3)
    for _ in range(2):
        found, wanted = next(feed), next(expected)
        for name in ("image", "label"):
            np.testing.assert_array_equal(found[name], wanted[name])
    state = json.loads(json.dumps(feed.state()))
    rest = firsts(feed, 4)  # the next epoch begins in between
    again = as_batches(data, 4, 3, SPEC)
    again.restore(state)
    assert firsts(again, 4) == rest
    other = as_batches(data, 4, 4, SPEC)
    with pytest.raises(BadInput, match="seed"):
        other.restore(state)


PAIRS = [(one["image"], one["label"]) for one in READY]
WANTED = [LABELS[:4].tolist(), LABELS[4:8].tolist(), LABELS[8:].tolist()]


@pytest.mark.parametrize("items", [READY, PAIRS, [list(pair) for pair in PAIRS]], ids=["dicts", "pairs", "lists"])
def test_an_iterable_of_batches_begins_anew_and_resumes_by_counting(items):
    feed = as_batches(Repeatable(items), 99, 0, SPEC)
    assert firsts(feed, 4) == [*WANTED, WANTED[0]]
    state = json.loads(json.dumps(feed.state()))
    assert state == {"batches": 4}
    rest = firsts(feed, 3)
    feed.restore(state)  # back, by beginning anew
    assert firsts(feed, 3) == rest
    fresh = as_batches(Repeatable(items), 99, 0, SPEC)
    fresh.restore(state)  # forward, by passing over
    assert firsts(fresh, 3) == rest
    np.testing.assert_array_equal(next(as_batches(items, 99))["image"], IMAGES[:4])


def test_an_iterator_ends_where_it_ends_and_never_goes_back():
    feed = as_batches(iter(READY), 99)
    assert firsts(feed, 3) == WANTED
    with pytest.raises(StopIteration):
        next(feed)
    with pytest.raises(BadInput, match="3 batches were taken, an iterator cannot go back to 1"):
        feed.restore({"batches": 1})
    late = as_batches(iter(READY), 99)
    late.restore({"batches": 2})
    assert firsts(late, 1) == WANTED[2:]
    with pytest.raises(BadInput, match="ends after 3 batches, expected 5"):
        as_batches(iter(READY), 99).restore({"batches": 5})


FEW = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


def dataset():
    """Endless batches of 3 in a shuffled order, each image with noise of its own."""
    records = grain.MapDataset.source([{"image": i, "label": n} for i, n in zip(IMAGES, LABELS, strict=True)])
    noisy = records.shuffle(seed=5).seed(1).random_map(lambda one, rng: {**one, "image": one["image"] + rng.normal()})
    return noisy.repeat().batch(3)


@pytest.mark.parametrize(
    "form",
    [
        dataset, pytest.param(lambda: dataset().to_iter_dataset(FEW), marks=pytest.mark.slow),
        lambda: iter(dataset().to_iter_dataset(FEW)),
    ],
    ids=["MapDataset", "IterDataset", "iterator"],
)  # fmt: skip
def test_grain_resumes_exactly(form):
    feed, expected = as_batches(form(), 99, 0, SPEC), iter(dataset())
    for _ in range(3):
        found, wanted = next(feed), next(expected)
        np.testing.assert_array_equal(found["image"], wanted["image"])
    state = json.loads(json.dumps(feed.state()))
    rest = [next(feed) for _ in range(3)]
    again = as_batches(form(), 99, 0, SPEC)
    again.restore(state)
    for one in rest:
        other = next(again)
        for name in ("image", "label"):
            np.testing.assert_array_equal(other[name], one[name])


def test_what_is_a_stream_already_stays_as_it_is():
    stream = batches({"image": IMAGES, "label": LABELS.astype(np.int32)}, 4, 0)
    assert as_batches(stream, 99) is stream


def test_arrays_of_other_libraries_and_types_will_do():
    found = next(as_batches([(jnp.asarray(IMAGES, jnp.bfloat16), LABELS.tolist())], 99, 0, SPEC))
    assert (found["image"].dtype, found["label"].tolist()) == (jnp.bfloat16, LABELS.tolist())
    first = next(as_batches((IMAGES.astype(np.float64), LABELS), 4, 0, SPEC))
    assert (first["image"].dtype, first["label"].dtype) == (np.float32, np.int32)
    assert next(as_batches([{"image": IMAGES}], 99)).keys() == {"image"}


def test_arrays_may_have_texts_in_place_of_labels():
    text, mask = np.arange(12 * 6, dtype=np.float16).reshape(12, 3, 2), np.arange(12)[:, None] > np.arange(3)
    whole = {"image": IMAGES, "text": text, "text_mask": mask}
    batches = as_batches(whole, 4, 0)
    state = None
    for _ in range(3):
        state, batch = batches.state(), next(batches)
        index = batch["text"][:, 0, 0].astype(int) // 6
        assert {name: value.dtype for name, value in batch.items()} == {"image": "f4", "text": "f2", "text_mask": "?"}
        for name, array in whole.items():
            np.testing.assert_array_equal(batch[name], array[index].astype(batch[name].dtype))
    again = as_batches(whole, 4, 0)
    again.restore(state)
    np.testing.assert_array_equal(next(again)["text"], batch["text"])
    with pytest.raises(BadInput, match=r"text to batch: float16\(5, 3, 2\), expected \(12, \.\.\.\)"):
        as_batches({**whole, "text": text[:5]}, 4, 0)


BYTES = (IMAGES * 50 + 128).astype(np.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, "data: got int, expected arrays, an iterable of batches or a grain dataset"),
        ("images.npz", "data: got str"),
        (IMAGES, "data: got ndarray"),
        ({"images": IMAGES}, r"a batch is \['images'\], expected the keys \('image', 'label'\)"),
        ([IMAGES], "a batch is ndarray, expected the keys"),
        ({"image": IMAGES, "label": LABELS, "text": LABELS}, "arrays .*'text'"),
        ({"image": IMAGES}, r"a batch is \['image'\], expected label"),
        ((BYTES, LABELS), r"data image: uint8\(12, 8, 8, 4\), expected batches of floats \(b, 8, 8, 4\)"),
        ((IMAGES[:, :4], LABELS), r"data image: float32\(12, 4, 8, 4\), expected batches of floats \(b, 8, 8, 4\)"),
        ([{"image": IMAGES[0], "label": LABELS[0]}], r"data image: float32\(8, 8, 4\), expected batches"),
        ((IMAGES, LABELS[:5]), r"data label: int64\(5,\), expected integers \(12,\)"),
        ((IMAGES, LABELS / 2), r"data label: float64\(12,\), expected integers"),
        ((IMAGES, LABELS + 5), r"data label: 5..14, expected classes 0..9, or 10 for none"),
        ((IMAGES, LABELS - 1), r"data label: -1..8, expected classes 0..9"),
        ((IMAGES[:0], LABELS[:0]), r"images to batch: float32\(0, 8, 8, 4\)"),
    ],
)  # fmt: skip
def test_wrong_data_is_one_line(data, message):
    with pytest.raises(BadInput, match=message) as refused:
        next(as_batches(data, 4, 0, SPEC))
    assert "\n" not in str(refused.value)


def test_texts_stay_with_their_images():
    text = IMAGES.mean((1, 2, 3))[:, None, None] + np.zeros((12, 6, 12), np.float32)  # tells whose it is
    data = {"image": IMAGES, "text": text, "text_mask": np.ones((12, 6), np.int32)}
    feed = as_batches(data, 5, 0, tiny_text_spec())
    for batch in (next(feed), next(feed), next(feed)):  # the third spans two epochs
        np.testing.assert_allclose(batch["text"][:, 0, 0], batch["image"].mean((1, 2, 3)), atol=1e-6)
        assert batch["text_mask"].shape == (5, 6)
    for wrong, message in (
        ({"image": IMAGES}, r"expected text \(12, \.\.\.\) beside image"),
        ({**data, "text_mask": np.ones((3, 6))}, r"text_mask to batch: float64\(3, 6\), expected \(12, ...\)"),
        ((IMAGES, LABELS), "expected text"),
    ):
        with pytest.raises(BadInput, match=message):
            as_batches(wrong, 4, 0, tiny_text_spec())


def test_loaders_and_tensors_of_pytorch():
    torch = pytest.importorskip("torch")
    images, labels = torch.from_numpy(IMAGES), torch.from_numpy(LABELS)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=4)
    np.testing.assert_array_equal(next(as_batches(loader, 4, spec=SPEC))["image"], IMAGES[:4])
    rounded = next(as_batches([(images[:4].bfloat16().requires_grad_(), labels[:4])], 4, spec=SPEC))["image"]
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, IMAGES[:4], rtol=2**-8)


def test_what_has_no_position_says_that_it_counts(capsys):
    stream = as_batches(READY, 4, spec=SPEC)
    stream.restore({"batches": 2})
    assert "2 batches are read again" in capsys.readouterr().err
    np.testing.assert_array_equal(next(stream)["image"], READY[2]["image"])
