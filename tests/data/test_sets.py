"""The sets that a notebook asks for: choices, images that cannot be read, downloads in another order."""

from dataclasses import replace

import numpy as np
import pytest
import trees
from PIL import Image

from apm import data as datasets
from apm.analysis import stats
from apm.data import sets


def test_sets_are_stratified_choices_with_their_own_prompts_or_one_ensemble(held_out):
    some, hard = sets.load_sets(["digits-test", "digits-hard"], 150)
    np.testing.assert_array_equal(some.indices, held_out.subset(150, seed=0).indices)
    assert len(hard) == len(datasets.load("digits-hard")) < 150
    (whole,) = sets.load_sets(["digits-test"], "all", ensemble="imagenet-7")
    assert (len(whole), len(whole.templates), some.templates) == (899, 7, held_out.templates)
    (listed,) = sets.load_sets(["digits-test"], 20, ensemble=["a {}.", "one {}."])
    assert listed.templates == ("a {}.", "one {}.")
    assert sets.MINIMUM_SAMPLES == stats.MINIMUM_SAMPLES


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
        (["digits-test"], 20, ["a {}.", "none"], "holds exactly one"),
        (["digits-test"], 20, 7, "unknown prompt set 7"),
        (["/data/own"], 20, None, "Did you mean 'folder:/data/own'"),
    ],
)
def test_impossible_choices_are_refused(names, samples, ensemble, message):
    with pytest.raises(ValueError, match=message):
        sets.load_sets(names, samples, ensemble=ensemble)


def test_a_set_with_a_question_mark_is_left_out_where_it_is_not_there_and_that_is_said(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DATA", str(tmp_path))
    sets.say.cache_clear()
    (found,) = sets.load_sets(["digits-test", "imagenet-a?"], 20)
    assert found.name == "digits-test"
    assert "left out: dataset imagenet-a: found none of" in capfd.readouterr().err
    monkeypatch.setenv("PARTIAL", "1")
    trees.imagenet_classes(tmp_path / "imagenet-a", classes=("n01498041",), per_class=10)
    assert [d.name for d in sets.load_sets(["digits-test", "imagenet-a?"], 20)] == ["digits-test", "imagenet-a"]
    with pytest.raises(FileNotFoundError, match="dataset imagenet-r: found none of"):
        sets.load_sets(["imagenet-r"], 20)


def test_corruptions_come_from_our_code_or_from_the_published_download(monkeypatch, held_out):
    whole = held_out
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


def test_pictures_of_a_set_leave_a_grey_square_for_an_image_that_cannot_be_read(tmp_path):
    for i in range(10):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i,) * 3).save(path)
    (tmp_path / "a" / "2.png").write_bytes(b"cut off")
    shown = sets.examples(datasets.load(f"folder:{tmp_path}"), 30)
    assert [image.shape[0] for image in shown] == [8, 32] + [8] * 8
    assert (shown[1] == 128).all()
    assert len(sets.examples(datasets.load(f"folder:{tmp_path}"), 4)) == 4
