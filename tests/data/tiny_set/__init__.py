"""A tensorflow-datasets builder of 24 random images of three classes. Its class must live in a package of its own."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

COUNTS = {"train": 24, "test": 6}


def image(split, i):
    """Image (h, w, 3) uint8; sizes vary."""
    return np.random.default_rng([len(split), i]).integers(0, 256, (18 + i % 5, 30, 3), np.uint8)


class TinySet(tfds.core.GeneratorBasedBuilder):
    """The set."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["a", "b", "c"])
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": label}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            file = io.BytesIO()  # encoding an array would take TensorFlow
            Image.fromarray(image(split, i)).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": i % 3}
