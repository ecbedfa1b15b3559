"""What is made of every image of a dataset is kept in files, once, under a name that says what determined it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from trees import photograph

from apm import data as datasets
from apm import teachers
from apm.teachers import cached


def files(tmp_path):
    return sorted((tmp_path / "cache" / "features").iterdir())


def test_features_are_the_encodings_and_come_from_disk_the_second_time(tiny, some_digits, tmp_path, monkeypatch):
    first = teachers.features(tiny, some_digits)
    assert (isinstance(first, np.memmap), first.dtype) == (True, np.float32)
    np.testing.assert_array_equal(first, tiny.encode(tiny.transform(some_digits.images)).feature)
    monkeypatch.setattr(teachers.Teacher, "encode", lambda *_, **__: pytest.fail("encoded again"))
    np.testing.assert_array_equal(teachers.features(tiny, some_digits), first)
    assert [path.suffix for path in files(tmp_path)] == [".npy"]


def test_changing_data_or_teacher_changes_the_cached_file(tiny, some_digits, tmp_path):
    other_teacher = teachers.Teacher(tiny.name, tiny.model, tiny.tokenizer, {**tiny.config, "note": "another"})
    cases = [
        (tiny, some_digits),
        (tiny, replace(some_digits, fingerprint="another")),
        (tiny, some_digits.subset(np.arange(len(some_digits))[::-1])),
        (tiny, replace(some_digits, corruption="fog", severity=3)),
        (other_teacher, some_digits),
    ]
    for count, (teacher, data) in enumerate(cases, start=1):
        teachers.features(teacher, data)
        assert len(files(tmp_path)) == count


def test_damaged_files_are_made_again_with_a_warning(tiny, some_digits, tmp_path):
    expected = np.array(teachers.features(tiny, some_digits))
    (path,) = files(tmp_path)
    for damage in (b"", b"no array", path.read_bytes()[:500], expected[:3], expected.astype(np.float16)):
        path.write_bytes(damage) if isinstance(damage, bytes) else np.save(path, damage)
        with pytest.warns(UserWarning, match="cannot be used.*making it again"):
            np.testing.assert_array_equal(teachers.features(tiny, some_digits), expected)


@pytest.fixture
def tree(tmp_path):
    """A class-per-folder tree with one file that is no image, as the dataset that reads it."""
    for i in range(12):
        photograph(tmp_path / "data" / ("cat" if i % 2 else "dog") / f"{i:02d}.png", i, (16, 16))
    (tmp_path / "data" / "cat" / "bad.png").write_bytes(b"nothing")
    return datasets.load(f"folder:{tmp_path / 'data'}")


@pytest.mark.parametrize("batch", [5, 3])  # the second is small enough for worker processes
def test_an_unreadable_image_leaves_the_others_their_features_and_is_named_on_demand(tiny, tree, batch, monkeypatch):
    monkeypatch.setattr(cached, "BATCH", batch)
    rows = teachers.features(tiny, tree)
    bad = int(np.flatnonzero(np.isnan(rows).any(axis=1)).item())
    good = np.array([i for i in range(len(tree)) if i != bad])
    alone = tiny.encode(tiny.transform([tree.images[int(i)] for i in good])).feature.numpy()
    np.testing.assert_allclose(rows[good], alone, atol=1e-5)
    np.testing.assert_allclose(teachers.features_at(tiny, tree, good[:3]), rows[good[:3]], atol=1e-5)
    with pytest.raises(datasets.UnreadableImage, match=r"bad\.png"):
        teachers.features_at(tiny, tree, np.array([0, bad]))


def test_anything_can_be_stored_of_every_image_and_a_bad_one_stops_by_name_on_request(tree, tmp_path):
    def mean(image):
        return torch.tensor(image).float().mean(dim=(0, 1))  # (3,)

    def store(name, **options):
        path = tmp_path / name / "means.npy"  # in a folder that is not there yet
        encode = lambda found: 1000 * found  # noqa: E731
        return cached.stored(path, tree, (3,), "float16", mean, encode, what="means", batch_size=4, **options)

    found = store("a")
    assert (found.shape, found.dtype, found.flags.writeable) == ((13, 3), np.float16, False)
    assert np.isinf(found).any()  # beyond float16, and no warning
    assert np.isnan(found).all(axis=1).sum() == 1
    np.testing.assert_array_equal(store("a", on_error="raise"), found)  # from the file
    with pytest.raises(datasets.UnreadableImage, match=r"bad\.png"):
        store("b", on_error="raise")
    assert not list((tmp_path / "b").glob("*"))  # nothing half made


def test_a_feature_that_is_not_finite_is_an_error_that_names_the_image(tiny, some_digits, monkeypatch):
    rows, at = np.array(teachers.features(tiny, some_digits)), np.array([7])
    right = rows[at].copy()
    rows[at] = np.inf
    monkeypatch.setattr(cached, "features", lambda *_: rows)
    # as an image that could not be read when the features were made, and can be now
    np.testing.assert_allclose(teachers.features_at(tiny, some_digits, at), right, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(type(tiny), "encode", lambda *_, **__: teachers.Encoding(torch.full((1, 16), torch.nan)))
    said = f"gives image {some_digits.indices[7]} of digits-test a feature that is not finite"
    with pytest.raises(ValueError, match=said):
        teachers.features_at(tiny, some_digits, at)


def test_features_are_kept_in_float16_by_choice_in_half_the_space(tiny_config, checkpoint, tiny, some_digits):
    half = teachers.load(str(tiny_config), pretrained=checkpoint, feature_dtype="float16")
    a, b = (teachers.features(teacher, some_digits) for teacher in (tiny, half))
    assert (a.nbytes, b.dtype) == (2 * b.nbytes, np.float16)
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert teachers.features_at(half, some_digits, np.array([3])).dtype == torch.float32
