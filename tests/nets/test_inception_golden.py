"""InceptionV3 in its FID form: against torch-fidelity's with the same random weights, part by part, and from its files.

`goldens/inception.npz` is what torch-fidelity 0.4.0 gives for `weights()` and `images()`; where it is installed (it need
not bring torchvision along), that is checked too.
"""

import functools
import importlib
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from graftax.errors import BadInput
from graftax.nets import inception
from graftax.nets.inception_files import load_inception
from graftax.testing import assert_trees_close

torch = pytest.importorskip("torch")

GOLDEN = Path(__file__).parents[1] / "goldens" / "inception.npz"


def weights():
    """A state dict of the PyTorch port with random numbers: names and shapes as in the published file."""
    rng, tensors = np.random.default_rng(0), {}
    shapes = flatten_dict(inception.param_shapes(), sep=".")
    for layer in sorted({name.rpartition(".")[0] for name in shapes} - {"fc"}):
        h, w, i, o = shapes[f"{layer}.kernel"].shape
        tensors[f"{layer}.conv.weight"] = rng.standard_normal((o, i, h, w), np.float32) * np.float32(
            (2 / (h * w * i)) ** 0.5
        )
        for name, centre in (("weight", 1), ("bias", 0), ("running_mean", 0)):
            tensors[f"{layer}.bn.{name}"] = np.float32(centre) + rng.standard_normal(o, np.float32) * np.float32(0.1)
        tensors[f"{layer}.bn.running_var"] = rng.random(o, np.float32) + np.float32(0.5)
        tensors[f"{layer}.bn.num_batches_tracked"] = np.int64(0)
    tensors["fc.weight"] = rng.standard_normal((1008, 2048), np.float32) * np.float32(0.02)
    tensors["fc.bias"] = rng.standard_normal(1008, np.float32)
    return tensors


def images():
    """Two images (2, 40, 52, 3) uint8: smooth in parts, noisy in parts."""
    noise = np.random.default_rng(1).integers(0, 256, (2, 40, 52, 3), np.uint8)
    noise[:, :20] = noise[:, :20, :1] // 2 + np.arange(52, dtype=np.uint8)[:, None]
    return noise


def fidelity_features(path):
    """(pool, spatial, logits) that torch-fidelity's network gives for `images()` with the weights at `path`."""
    port = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    network = port.FeatureExtractorInceptionV3(
        "network", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )
    taken = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, out: taken.append(out))
    pool, logits = network(torch.from_numpy(images().transpose(0, 3, 1, 2).copy()))
    spatial = taken[0][:, :7].permute(0, 2, 3, 1).reshape(len(pool), -1)
    return {"pool": pool.numpy(), "spatial": spatial.numpy(), "logits": logits.numpy()}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The weights in the format from before PyTorch 1.6, which the published file has."""
    path = tmp_path_factory.mktemp("weights") / "pt_inception.pth"
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in weights().items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def params(file):
    return load_inception(file)[0]


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_features_are_torch_fidelitys(params):
    """Sums of thousands of float32 products in another order: some 1e-6."""
    found = jax.jit(inception.features)(params, images())
    with np.load(GOLDEN) as golden:
        for name in ("pool", "spatial", "logits"):
            assert getattr(found, name).shape == golden[name].shape
            assert relative(getattr(found, name), golden[name]) < 1e-5, name


@pytest.mark.slow
def test_golden_is_torch_fidelitys(file, bare_torch_fidelity):
    if not bare_torch_fidelity:
        pytest.skip("torch-fidelity is not installed (pip install --no-deps torch-fidelity)")
    found = fidelity_features(file)
    with np.load(GOLDEN) as golden:
        for name in golden.files:
            assert relative(found[name], golden[name]) < 1e-5, name


def resize_by_definition(image, size):
    """Pixel (i, j) of the result is the image at (i h / size, j w / size), bilinear, constant beyond the last pixel."""
    h, w, c = image.shape
    out = np.zeros((size, size, c))
    for i in range(size):
        for j in range(size):
            y, x = i * h / size, j * w / size
            top, left = int(y), int(x)
            for row, down in ((top, 1 - (y - top)), (min(top + 1, h - 1), y - top)):
                for column, right in ((left, 1 - (x - left)), (min(left + 1, w - 1), x - left)):
                    out[i, j] += down * right * image[row, column]
    return out


@pytest.mark.parametrize("shape", [(7, 5), (11, 23), (12, 12), (30, 9)])
def test_resize_is_tensorflow_1s(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    found = inception.resize(image[None], 12)[0]
    np.testing.assert_allclose(found, resize_by_definition(image, 12), atol=1e-3)  # of 255
    if shape == (12, 12):
        assert np.array_equal(found, image)
    else:  # today's libraries look from the centres of pixels
        given = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
        today = torch.nn.functional.interpolate(given, (12, 12), mode="bilinear")[0].permute(1, 2, 0)
        assert np.abs(found - today.numpy()).max() > 5


@pytest.mark.parametrize("size", [(8, 8), (9, 14)])
def test_pools(size):
    x = np.random.default_rng(0).standard_normal((2, *size, 3), np.float32)
    given, pools = torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.nn.functional
    for ours, theirs in (
        (inception._average, functools.partial(pools.avg_pool2d, stride=1, padding=1, count_include_pad=False)),
        (inception._largest, functools.partial(pools.max_pool2d, stride=1, padding=1)),
        (inception._shrink, functools.partial(pools.max_pool2d, stride=2)),
    ):
        np.testing.assert_allclose(jax.jit(ours)(x), theirs(given, 3).numpy().transpose(0, 2, 3, 1), atol=1e-6)


def test_only_uint8_images_are_taken(params):
    for wrong in (np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 1), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(BadInput, match=r"expected uint8 \(b, h, w, 3\)"):
            inception.features(params, wrong)


def as_pickle(tensors):
    """The nested dictionary of the JAX ports."""
    names = {"bn.weight": "bn.scale", "bn.running_mean": "bn.mean", "bn.running_var": "bn.var", "conv.weight": "conv.kernel"}
    flat = {}
    for key, array in tensors.items():
        for old, new in names.items():
            key = key.replace(old, new)
        if key.endswith("kernel"):
            array = np.ascontiguousarray(array.transpose(2, 3, 1, 0))
        if not key.endswith("tracked"):
            flat[key.replace("fc.weight", "fc.kernel")] = array.T if key == "fc.weight" else array
    return unflatten_dict(flat, sep=".")


@pytest.mark.slow
def test_pickled_layout_gives_the_same_parameters(params, tmp_path):
    path = tmp_path / "inception_v3_weights_fid.pickle"
    tree = as_pickle(weights())
    path.write_bytes(pickle.dumps(tree, 4))
    found, source = load_inception(path)
    assert_trees_close(found, params, rtol=0, atol=0)
    assert source.name == path.name
    del tree["fc"]
    path.write_bytes(pickle.dumps(tree, 4))
    assert "fc" not in load_inception(path)[0]


@pytest.mark.slow
def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "weights.pt"

    def refused(change, match):
        tensors = {"fc.weight": np.zeros((1008, 2048), np.float32)}
        for name, array in weights_shapes().items():
            tensors[name] = array
        change(tensors)
        torch.save({name: torch.from_numpy(np.asarray(array)) for name, array in tensors.items()}, path)
        with pytest.raises(BadInput, match=match) as caught:
            load_inception(path)
        assert str(path) in str(caught.value)

    refused(lambda t: t.update({"fc.weight": np.zeros((1000, 2048), np.float32)}), r"fc/kernel: shape \(2048, 1000\)")
    refused(lambda t: t.pop("Mixed_7c.branch_pool.bn.running_var"), "lacks Mixed_7c/branch_pool/bn/running_var")
    refused(lambda t: t.update({"AuxLogits.fc.weight": np.zeros(3)}), "unknown AuxLogits/fc/weight")
    refused(lambda t: t.update({"Conv2d_1a_3x3.bn.bias": np.zeros(5)}), "Conv2d_1a_3x3: normalisation of another width")
    refused(lambda t: t.update({"Conv2d_1a_3x3.conv.weight": np.zeros((32, 1, 3, 3))}), r"Conv2d_1a_3x3/kernel: shape \(3")


@functools.cache
def weights_shapes():
    return {name: np.zeros(np.shape(array), np.asarray(array).dtype) for name, array in weights().items()}
