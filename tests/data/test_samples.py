"""The natural images that a package carries."""

import importlib.util

import numpy as np
import pytest

from apm import data
from apm.data import corruptions, samples


@pytest.mark.parametrize(
    ("name", "side", "classes"),
    [("imagenet-sample", 224, 1000), ("cifar10-sample", 32, 10), ("cifar100-sample", 32, 100)],
)
def test_a_sample_has_twenty_labelled_images_a_licence_and_a_fingerprint(name, side, classes):
    found = data.load(name)
    assert np.asarray(found.images).shape == (20, side, side, 3)
    assert len(found.classnames) == classes
    assert "foolbox" in found.notes
    assert "Licence" in found.notes
    assert found.fingerprint == data.load(name).fingerprint
    assert name in data.names()


def test_photographs_are_corrupted_in_the_size_regime_of_imagenet():
    sample = data.load("imagenet-sample")
    assert sample.classnames[sample.labels[0]] == "Bullmastiff"
    assert corruptions.regime_of(sample.images[0].shape) == "imagenet-c"


def test_a_label_outside_the_class_list_is_refused(monkeypatch):
    samples.load.cache_clear()
    monkeypatch.setitem(samples.CLASSES, "cifar10", ("cat", "dog"))
    with pytest.raises(ValueError, match=r"cifar10-sample: labels must lie in 0..1 \(2 class names\), found 0..9"):
        data.load("cifar10-sample")


def test_a_missing_package_is_named(monkeypatch):
    samples.load.cache_clear()
    monkeypatch.setattr(samples, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install foolbox"):
        data.load("cifar10-sample")
    assert importlib.util.find_spec("foolbox") is not None
