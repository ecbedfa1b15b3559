"""Sets made from CIFAR-10: the change of every pixel, labels and names by hand, on a tree in torchvision's class-folder form."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apm.data import datasets, derived_sets
from apm.data.derived_sets import CLASSES, LABEL_SPACES, RENDITIONS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in CLASSES:
        folder = tmp_path / "cifar10" / "test" / name
        folder.mkdir(parents=True)
        for i in range(2):
            blocks = rng.integers(0, 200, (8, 8, 3), dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)
            pixels = blocks + rng.integers(0, 55, blocks.shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


def load(name: str, root: Path) -> datasets.Dataset:
    return datasets.load(name, root=root, partial=True)


def test_they_are_among_the_known_names() -> None:
    assert set(derived_sets.names()) <= set(datasets.names())


@pytest.mark.parametrize("name", RENDITIONS)
def test_renditions_keep_labels_names_and_places(name: str, root: Path) -> None:
    base, made = load("cifar10", root), load(name, root)
    assert (made.name, made.origin) == (name, "cifar10")
    assert made.classnames == CLASSES
    assert np.array_equal(made.labels, base.labels)
    assert np.array_equal(made.indices, base.indices)
    assert made.fingerprint != base.fingerprint
    image = made.images[3]
    assert image.dtype == np.uint8
    assert image.shape == (32, 32, 3)
    assert not np.array_equal(image, base.images[3])
    part = made.subset([3, 5])
    assert np.array_equal(part.images[1], made.images[5])


def test_every_change_by_hand(root: Path) -> None:
    image = np.asarray(load("cifar10", root).images[0]).astype(float)
    made = {name: np.asarray(load(name, root).images[0]).astype(float) for name in RENDITIONS}
    assert np.array_equal(made["cifar10-negative"], 255 - image)
    luma = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    np.testing.assert_allclose(made["cifar10-grey"][..., 0], luma, atol=0.5)
    assert np.array_equal(made["cifar10-grey"][..., 0], made["cifar10-grey"][..., 2])
    assert set(np.unique(made["cifar10-edges"])) == {0.0, 255.0}
    assert set(np.unique(made["cifar10-flat"])) <= {0.0, 64.0, 128.0, 191.0, 255.0}
    np.testing.assert_allclose(made["cifar10-coarse"][0, 0], image[:2, :2].mean(axis=(0, 1)), atol=0.5)
    assert np.array_equal(made["cifar10-coarse"][0, 0], made["cifar10-coarse"][1, 1])


@pytest.mark.parametrize("name", LABEL_SPACES)
def test_label_spaces_rename_the_classes_of_the_same_images(name: str, root: Path) -> None:
    base, made = load("cifar10", root), load(name, root)
    classes = LABEL_SPACES[name][0]
    assert made.classnames == tuple(classes)
    assert made.origin == "cifar10"
    place = {int(index): row for row, index in enumerate(base.indices)}
    for row in range(len(made)):
        own = int(base.labels[place[int(made.indices[row])]])
        assert own in list(classes.values())[int(made.labels[row])]
        assert np.array_equal(made.images[row], base.images[place[int(made.indices[row])]])
    members = sorted(m for part in classes.values() for m in part)
    assert members == sorted(set(members))
    assert len(made) == 2 * len(members)


def test_unknown_names_and_other_classes_are_errors(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"unknown derived set 'cifar10-gray'.*Did you mean 'cifar10-grey'"):
        derived_sets.load("cifar10-gray", root)
    with pytest.raises(FileNotFoundError, match="cifar10"):
        derived_sets.load("cifar10-grey", root / "nothing")
    other = load("cifar10", root).subset([0, 1])
    from dataclasses import replace

    monkeypatch.setattr(derived_sets, "load_dataset", lambda *a, **o: replace(other, classnames=("ant", "bee")))
    with pytest.raises(ValueError, match="is made from CIFAR-10: expected the classes"):
        derived_sets.load("cifar10-grey", root)
