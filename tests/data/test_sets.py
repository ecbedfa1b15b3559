"""The sets that a notebook asks for: choices, images that cannot be read, downloads in another order."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from apm import data as datasets
from apm.analysis import stats
from apm.data import sets


def test_sets_are_stratified_choices_and_small_ones_are_taken_whole() -> None:
    some, hard = sets.load_sets(["digits-test", "digits-hard"], 150)
    np.testing.assert_array_equal(some.indices, datasets.load("digits-test").subset(150, seed=0).indices)
    assert len(hard) == len(datasets.load("digits-hard")) < 150
    assert len(sets.load_sets(["digits-test"], "all")[0]) == 899
    assert sets.MINIMUM_SAMPLES == stats.MINIMUM_SAMPLES


def test_one_ensemble_can_stand_for_every_sets_own_prompts() -> None:
    own, chosen = (sets.load_sets(["digits-test"], 20, ensemble=name)[0] for name in (None, "imagenet-7"))
    assert own.templates != chosen.templates
    assert len(chosen.templates) == 7
    assert np.array_equal(own.indices, chosen.indices)


@pytest.mark.parametrize(
    ("names", "samples", "ensemble", "message"),
    [
        ([], 20, None, "each once"),
        (["digits-test", "digits-test"], 20, None, "each once"),
        (["digits-tset"], 20, None, "unknown dataset 'digits-tset'.*digits-test"),
        (["digits-test"], 5, None, "at least 10 images"),
        (["digits-test"], 12.5, None, "found 12.5"),
        (["digits-test"], "every", None, 'samples must be "all"'),
        (["digits-test"], 20, "imagenet-8", "unknown.*'imagenet-8'"),
    ],
)
def test_impossible_choices_are_refused(names, samples, ensemble, message) -> None:
    with pytest.raises(ValueError, match=message):
        sets.load_sets(names, samples, ensemble=ensemble)


def test_corruptions_come_from_our_code_or_from_the_published_download(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = datasets.load("digits-test")
    data = whole.subset([5, 2, 9])
    own = sets.corrupted_sets(data, ["fog", "snow"], [3, 5])
    assert [(d.corruption, d.severity) for d in own] == [("fog", 3), ("snow", 3), ("fog", 5), ("snow", 5)]
    monkeypatch.setattr(sets, "load_dataset", lambda name: whole if name == "cifar10-c/fog/5" else None)
    (read,) = sets.corrupted_sets(data, ["fog"], [5], source="cifar10-c")
    assert read.indices.tolist() == data.indices.tolist()
    # class folders are sorted by class, CIFAR-10-C is not: image i of one is not image i of the other
    by_class = whole.subset(np.argsort(whole.labels, kind="stable"))
    by_class = replace(by_class, indices=np.arange(len(whole)))
    with pytest.raises(ValueError, match=r"fog/5 and digits-test have the same label on \d+\.\d %.*torchvision"):
        sets.corrupted_sets(by_class.subset(20), ["fog"], [5], source="cifar10-c")
    monkeypatch.setattr(sets, "load_dataset", lambda name: whole.subset(4))
    with pytest.raises(ValueError, match="cifar10-c/fog/5 has 4 images, digits-test refers to image"):
        sets.corrupted_sets(data, ["fog"], [5], source="cifar10-c")


@pytest.fixture
def tree(tmp_path):
    """Two classes of ten images; the second file of the first class is cut off."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.fromarray(np.full((8, 8, 3), 20 * i, dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    broken = tmp_path / "a" / "1.png"
    broken.write_bytes(broken.read_bytes()[:50])
    return datasets.load(f"folder:{tmp_path}")


def test_pictures_of_a_set_leave_a_grey_square_for_an_image_that_cannot_be_read(tree) -> None:
    shown = sets.examples(tree, 30)
    assert len(shown) == 20
    assert [i for i, image in enumerate(shown) if image.shape != (8, 8, 3)] == [1]
    assert (shown[1] == 128).all()
