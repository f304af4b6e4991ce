import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from graftax.errors import BadInput
from graftax.evaluate.extract import extract, feature_moments
from graftax.evaluate.image_file import open_images
from graftax.evaluate.metrics import frechet_distance

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 4, 5, 3), np.uint8)


def project(weights: jax.Array, images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1).astype(jnp.float32) @ weights  # (b, d)


FEATURES = Partial(project, np.random.default_rng(1).normal(size=(60, 6)).astype(np.float32))


@pytest.mark.parametrize("batch", [1, 8, 23, 64])
def test_features_come_in_order_without_padding(batch):
    parts = list(extract(FEATURES, IMAGES, batch=batch))
    assert max(map(len, parts)) <= batch
    np.testing.assert_allclose(np.concatenate(parts), FEATURES(IMAGES), rtol=1e-4)


def test_one_compilation_and_weights_outside_of_it():
    shapes = []

    def spy(weights, images):
        assert isinstance(weights, jax.core.Tracer)
        shapes.append(images.shape)
        return project(weights, images)

    assert len(list(extract(Partial(spy, FEATURES.args[0]), IMAGES, batch=5))) == 5
    assert shapes == [(5, 4, 5, 3)]


def test_moments_in_any_space_from_a_file_or_an_array(tmp_path):
    np.savez(tmp_path / "a.npz", IMAGES)
    file = open_images(tmp_path / "a.npz")
    assert file is not None
    a, b = (feature_moments(FEATURES, "six numbers", images, batch=4) for images in (IMAGES, file))
    rows = np.asarray(FEATURES(IMAGES), np.float64)
    np.testing.assert_allclose(a.covariance, np.cov(rows.T), rtol=1e-4)
    assert (a.count, a.space) == (23, "six numbers")
    assert frechet_distance(a, b) < 1e-8 * np.trace(a.covariance)
    other = feature_moments(FEATURES, "others", IMAGES)
    with pytest.raises(BadInput, match="'six numbers' against 'others'"):
        frechet_distance(a, other)


HOST = """
import sys
import jax
import numpy as np

index, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
from graftax.evaluate.extract import over_hosts
from graftax.evaluate.metrics import Moments

features = np.random.default_rng(0).normal(1e4, 0.1, (300, 5))
stream = Moments(5, "five numbers")
stream.add((features[:200], features[200:])[index])
found = over_hosts(stream).result()
assert (found.count, found.space) == (300, "five numbers")
np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-12)
np.testing.assert_allclose(found.covariance, np.cov(features.T), rtol=1e-6, atol=1e-9)
"""


@pytest.mark.slow
def test_two_hosts_get_the_moments_of_all_images_in_float64():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    hosts = [subprocess.Popen([sys.executable, "-c", HOST, str(i), str(port)], **pipe) for i in range(2)]
    for host in hosts:
        out, _ = host.communicate(timeout=240)
        assert host.returncode == 0, out


def test_refusals():
    with pytest.raises(BadInput, match="six numbers: 0 images"):
        feature_moments(FEATURES, "six numbers", IMAGES[:0])
    with pytest.raises(BadInput, match="batches of 0"):
        list(extract(FEATURES, IMAGES, batch=0))
