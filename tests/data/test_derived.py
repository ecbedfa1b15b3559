"""Sets made from the held-out digits and from CIFAR-10: every change by hand, labels and names of the label spaces."""

import pickle

import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid
from trees import photograph

from apm.data import load, names
from apm.data.derived import DIGIT_RENDITIONS, LABEL_SPACES, RENDITIONS, base
from apm.data.derived import names as derived_names
from apm.data.published_sets import CLASSES


@pytest.fixture
def root(tmp_path):
    """CIFAR-10's test split as class folders, two images a class."""
    for i, name in enumerate(2 * CLASSES["cifar10"]):
        photograph(tmp_path / "cifar10" / "test" / name / f"{i}.png", i, (32, 32))
    return tmp_path


def test_they_are_among_the_known_names_and_need_their_base(tmp_path):
    assert set(derived_names()) <= set(names())
    with pytest.raises(FileNotFoundError, match="cifar10"):
        load("cifar10-grey", root=tmp_path)


@pytest.mark.parametrize("name", [*DIGIT_RENDITIONS, *RENDITIONS])
def test_renditions_change_the_picture_and_nothing_else(name, root):
    whole, made = (load(n, root=root, partial=True) for n in (base(name), name))
    assert (made.name, made.origin) == (name, whole.name)
    assert (made.classnames, made.templates) == (whole.classnames, whole.templates)
    np.testing.assert_array_equal(made.labels, whole.labels)
    np.testing.assert_array_equal(made.indices, whole.indices)
    assert made.fingerprint != whole.fingerprint
    for before, after in zip(whole.images, made.images, strict=True):
        assert (after.shape, after.dtype) == (before.shape, np.uint8)
        assert (after != before).any()
    part = pickle.loads(pickle.dumps(made.subset([3, 5])))  # as for a worker
    np.testing.assert_array_equal(part.images[1], made.images[5])


def test_what_is_done_to_digits(held_out):
    grey = held_out.images[..., 0].astype(int)
    made = {name.removeprefix("digits-"): load(name).images.astype(int) for name in DIGIT_RENDITIONS}
    np.testing.assert_array_equal(made["inverted"][..., 0], 255 - grey)
    assert set(np.unique(made["edges"])) == {0, 255}
    assert (made["edges"].max(axis=(1, 2, 3)) == 255).all()  # no empty picture
    assert (made["thick"][..., 0] >= grey).all()
    assert made["thin"].mean() < grey.mean() / 1.5
    assert (made["thin"].max(axis=(1, 2, 3)) >= 128).all()
    paper, ink = made["coloured"].min(axis=(1, 2)), made["coloured"].max(axis=(1, 2))  # (N, 3)
    assert paper.max() <= 77 < 128 <= ink.min()
    assert (np.ptp(made["coloured"], axis=-1).max(axis=(1, 2)) > 0).mean() > 0.99  # not grey


def test_what_is_done_to_cifar10(root):
    image = load("cifar10", root=root, partial=True).images[0].astype(float)
    made = {name[8:]: load(name, root=root, partial=True).images[0].astype(float) for name in RENDITIONS}
    np.testing.assert_array_equal(made["negative"], 255 - image)
    luma = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    np.testing.assert_allclose(made["grey"], luma[..., None].repeat(3, axis=-1), atol=0.5)
    assert set(np.unique(made["edges"])) == {0.0, 255.0}
    assert set(np.unique(made["flat"])) <= {0.0, 64.0, 128.0, 191.0, 255.0}
    np.testing.assert_allclose(made["coarse"][0, 0], image[:2, :2].mean(axis=(0, 1)), atol=0.5)
    np.testing.assert_array_equal(made["coarse"][0, 0], made["coarse"][1, 1])


@pytest.mark.filterwarnings("ignore:.*zero standard deviation")
def test_hard_digits_are_those_that_the_nearest_class_mean_gets_wrong(held_out):
    train, hard = load("digits-train"), load("digits-hard")
    model = NearestCentroid().fit(train.images[..., 0].reshape(len(train), -1), train.labels)
    predicted = model.predict(held_out.images[..., 0].reshape(len(held_out), -1))
    np.testing.assert_array_equal(hard.indices, np.flatnonzero(predicted != held_out.labels))
    np.testing.assert_array_equal(hard.images, held_out.images[hard.indices])
    assert hard.origin == held_out.name


@pytest.mark.parametrize("name", LABEL_SPACES)
def test_label_spaces_rename_the_classes_of_the_same_images(name, root):
    whole, made = (load(n, root=root, partial=True) for n in (base(name), name))
    classes = LABEL_SPACES[name]["classes"]
    assert (made.classnames, made.origin) == (tuple(classes), whole.name)
    new = {old: label for label, members in enumerate(classes.values()) for old in members}
    assert len(new) == sum(map(len, classes.values()))
    assert made.indices.tolist() == np.flatnonzero(np.isin(whole.labels, list(new))).tolist()
    assert made.labels.tolist() == [new[label] for label in whole.labels[made.indices]]
    np.testing.assert_array_equal(made.images[-1], whole.images[made.indices[-1]])


def test_what_the_label_spaces_say():
    words = {name: space["classes"] for name, space in LABEL_SPACES.items()}
    assert words["digits-numerals"] == {str(d): [d] for d in range(10)}
    assert words["digits-parity"]["odd number"] == [1, 3, 5, 7, 9]
    assert words["digits-size"]["number less than five"] == [0, 1, 2, 3, 4]
    assert words["cifar10-animals"] == {CLASSES["cifar10"][c]: [c] for c in (2, 3, 4, 5, 6, 7)}
    assert words["cifar10-kinds"]["vehicle"] == [CLASSES["cifar10"].index(n) for n in words["cifar10-vehicles"]]
