"""Sets made from the held-out digits and from CIFAR-10: every change by hand, labels and names of the label spaces."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apm.data import load, names
from apm.data.derived import LABEL_SPACES, RENDITIONS, base
from apm.data.derived import names as derived_names
from apm.data.published_sets import CLASSES

DOMAINS = ["digits-inverted", "digits-edges", "digits-thick", "digits-thin", "digits-coloured", "digits-photo"]


@pytest.fixture(scope="module")
def held_out():
    return load("digits-test")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """CIFAR-10's test split as class folders, two images a class."""
    rng = np.random.default_rng(0)
    for name in CLASSES["cifar10"]:
        folder = tmp_path / "cifar10" / "test" / name
        folder.mkdir(parents=True)
        for i in range(2):
            blocks = rng.integers(0, 200, (8, 8, 3), dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)
            Image.fromarray(blocks + rng.integers(0, 55, blocks.shape, dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path


def test_they_are_among_the_known_names_and_need_their_base(tmp_path: Path) -> None:
    assert set(derived_names()) <= set(names())
    with pytest.raises(FileNotFoundError, match="cifar10"):
        load("cifar10-grey", root=tmp_path)


@pytest.mark.parametrize("name", DOMAINS)
def test_domains_change_the_picture_and_nothing_else(name, held_out):
    domain = load(name)
    assert (domain.images.shape, domain.images.dtype) == (held_out.images.shape, np.uint8)
    np.testing.assert_array_equal(domain.labels, held_out.labels)
    np.testing.assert_array_equal(domain.indices, held_out.indices)
    assert (domain.classnames, domain.templates) == (held_out.classnames, held_out.templates)
    assert domain.origin == held_out.name
    assert domain.fingerprint != held_out.fingerprint
    assert all((a != b).any() for a, b in zip(domain.images, held_out.images, strict=True))
    np.testing.assert_array_equal(domain.images, load(name).images)


def test_what_each_domain_does(held_out):
    grey = held_out.images[..., 0].astype(int)
    made = {name: load(name).images.astype(int) for name in DOMAINS}
    np.testing.assert_array_equal(made["digits-inverted"][..., 0], 255 - grey)
    assert set(np.unique(made["digits-edges"])) == {0, 255}
    assert (made["digits-edges"].max(axis=(1, 2, 3)) == 255).all()  # no empty picture
    assert (made["digits-thick"][..., 0] >= grey).all()
    assert made["digits-thin"].mean() < grey.mean() / 1.5
    assert (made["digits-thin"].max(axis=(1, 2, 3)) >= 128).all()
    paper, ink = made["digits-coloured"].min(axis=(1, 2)), made["digits-coloured"].max(axis=(1, 2))  # (N, 3)
    assert paper.max() <= 77
    assert ink.min() >= 128
    assert (np.ptp(made["digits-coloured"], axis=-1).max(axis=(1, 2)) > 0).mean() > 0.99  # not grey


@pytest.mark.filterwarnings("ignore:.*zero standard deviation")
def test_hard_digits_are_those_that_the_nearest_class_mean_gets_wrong(held_out):
    from sklearn.neighbors import NearestCentroid

    train, hard = load("digits-train"), load("digits-hard")
    model = NearestCentroid().fit(train.images[..., 0].reshape(len(train), -1), train.labels)
    predicted = model.predict(held_out.images[..., 0].reshape(len(held_out), -1))
    np.testing.assert_array_equal(hard.indices, np.flatnonzero(predicted != held_out.labels))
    np.testing.assert_array_equal(hard.images, held_out.images[hard.indices])
    assert hard.origin == held_out.name


@pytest.mark.parametrize("name", RENDITIONS)
def test_renditions_keep_labels_names_and_places(name: str, root: Path) -> None:
    whole, made = (load(n, root=root, partial=True) for n in ("cifar10", name))
    assert (made.name, made.origin) == (name, "cifar10")
    assert made.classnames == whole.classnames
    assert np.array_equal(made.labels, whole.labels)
    assert np.array_equal(made.indices, whole.indices)
    assert made.fingerprint != whole.fingerprint
    image = made.images[3]
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    assert not np.array_equal(image, whole.images[3])
    part = pickle.loads(pickle.dumps(made.subset([3, 5])))  # as for a worker
    assert np.array_equal(part.images[1], made.images[5])


def test_every_rendition_by_hand(root: Path) -> None:
    image = np.asarray(load("cifar10", root=root, partial=True).images[0]).astype(float)
    made = {name[8:]: np.asarray(load(name, root=root, partial=True).images[0]).astype(float) for name in RENDITIONS}
    assert np.array_equal(made["negative"], 255 - image)
    luma = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    np.testing.assert_allclose(made["grey"], luma[..., None].repeat(3, axis=-1), atol=0.5)
    assert set(np.unique(made["edges"])) == {0.0, 255.0}
    assert set(np.unique(made["flat"])) <= {0.0, 64.0, 128.0, 191.0, 255.0}
    np.testing.assert_allclose(made["coarse"][0, 0], image[:2, :2].mean(axis=(0, 1)), atol=0.5)
    assert np.array_equal(made["coarse"][0, 0], made["coarse"][1, 1])


@pytest.mark.parametrize("name", LABEL_SPACES)
def test_label_spaces_rename_the_classes_of_the_same_images(name: str, root: Path) -> None:
    whole, made = (load(n, root=root, partial=True) for n in (base(name), name))
    classes = LABEL_SPACES[name]["classes"]
    assert (made.classnames, made.origin) == (tuple(classes), whole.name)
    members = [m for part in classes.values() for m in part]
    assert len(set(members)) == len(members)
    assert made.indices.tolist() == np.flatnonzero(np.isin(whole.labels, members)).tolist()
    for row in range(0, len(made), 7):
        at = int(made.indices[row])
        assert whole.labels[at] in list(classes.values())[made.labels[row]]
        assert np.array_equal(made.images[row], whole.images[at])


def test_what_the_label_spaces_say() -> None:
    words = {name: space["classes"] for name, space in LABEL_SPACES.items()}
    assert words["digits-numerals"] == {str(d): [d] for d in range(10)}
    assert words["digits-parity"]["odd number"] == [1, 3, 5, 7, 9]
    assert words["digits-size"]["number less than five"] == [0, 1, 2, 3, 4]
    assert words["cifar10-animals"] == {CLASSES["cifar10"][c]: [c] for c in (2, 3, 4, 5, 6, 7)}
    assert words["cifar10-kinds"]["vehicle"] == [CLASSES["cifar10"].index(n) for n in words["cifar10-vehicles"]]
    for name in ("digits-below-five", "digits-lookalikes"):
        digits = load("digits-test").classnames
        assert words[name] == {digits[m[0]]: m for m in words[name].values()}
