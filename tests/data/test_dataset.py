"""Datasets at the room's door: what is made here, parts of it, and image files as they come."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.distance import pdist
from trees import photograph

from apm.data import Lazy, UnreadableImage, fingerprint, load, names, read_image, register


@pytest.fixture(scope="module")
def printed():
    return load("printed-digits")


@pytest.fixture
def tree(tmp_path):
    for name, count in (("sea_lion", 3), ("cat", 2)):
        for i in range(count):
            photograph(tmp_path / name / f"{i}.png", i, (12, 9))
    return tmp_path


def test_own_sets_are_registered_and_unknown_names_list_the_known_ones(held_out):
    register("my-digits")(lambda root, seed: replace(held_out, name=f"mine {seed}"))
    assert "my-digits" in names()
    assert load("my-digits", seed=3).name == "mine 3"
    with pytest.raises(ValueError, match=r"digit-test.*digits-test.*printed-digits.*folder:PATH"):
        load("digit-test")


# ---- digits


def test_digit_halves_are_disjoint_stratified_complete_and_of_the_stored_scans(held_out):
    from sklearn.datasets import load_digits

    train = load("digits-train")
    assert len(train) + len(held_out) == 1797
    assert not {i.tobytes() for i in train.images} & {i.tobytes() for i in held_out.images}
    assert abs(np.bincount(train.labels) - np.bincount(held_out.labels)).max() <= 1
    assert (held_out.images.shape, held_out.images.dtype) == ((899, 32, 32, 3), np.uint8)
    block_means = held_out.images[0, ..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
    distances = np.abs(load_digits().images * (255 / 16) - block_means).mean(axis=(1, 2))
    assert distances.min() < 20 < np.median(distances)
    assert load_digits().target[distances.argmin()] == held_out.labels[0]


@pytest.mark.parametrize("name", ["digits-test", "printed-arabic-indic"])
def test_loading_twice_gives_the_same_bytes_and_another_seed_another_fingerprint(name):
    first, again = load(name), load(name)
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.images, first.images)
    assert load(name, seed=1).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("name", "count"), [("printed-digits", 800), ("printed-arabic-indic", 280), ("printed-letters", 400)]
)
def test_printed_signs_are_balanced_visible_and_different(name, count):
    signs = load(name)
    groups = np.array(signs.groups or ["all"] * count)
    for family in np.unique(groups):
        assert len(set(np.bincount(signs.labels[groups == family], minlength=10))) == 1
    assert (len(signs), len(np.unique(groups))) == (count, 5 if name == "printed-digits" else 1)
    assert signs.images.max(axis=(1, 2, 3)).min() >= 160
    assert len({image.tobytes() for image in signs.images}) == count
    means = np.stack([signs.images[signs.labels == c].mean(axis=0).ravel() for c in range(10)])
    assert pdist(means).min() > 200  # no two signs drawn alike, as placeholders for missing glyphs would be


# ---- parts of a dataset


def test_fingerprint_depends_on_pixels_labels_and_class_names(held_out):
    images, labels, classes = held_out.images[:20], held_out.labels[:20], held_out.classnames
    changed = images.copy()
    changed[7, 3, 4, 1] ^= 1
    variants = [(images, labels, classes), (changed, labels, classes), (images, labels[::-1], classes)]
    assert len({fingerprint(*v) for v in [*variants, (images, labels, classes[::-1])]}) == 4


def test_subset_keeps_labels_indices_groups_and_fingerprint_together(printed):
    part = printed.subset(37, seed=3).subset([5, 2])
    for i, at in enumerate(part.indices):
        np.testing.assert_array_equal(part.images[i], printed.images[at])
        assert (part.labels[i], part.groups[i]) == (printed.labels[at], printed.groups[at])
    assert part.fingerprint == printed.fingerprint


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 899), seed=st.integers(0, 5))
def test_counted_subsets_are_stratified_deterministic_and_nested(held_out, n, seed):
    part = held_out.subset(n, seed=seed)
    assert len(part) == n
    np.testing.assert_array_equal(part.indices, held_out.positions(n, seed=seed))
    share = np.bincount(held_out.labels) * n / len(held_out)
    assert np.abs(np.bincount(part.labels, minlength=10) - share).max() <= 1.01
    assert set(held_out.subset(max(1, n - 1), seed=seed).indices) <= set(part.indices)


@pytest.mark.parametrize("bad", [0, 900, -1, [], [899], [-1], [4, 4], [[1, 2]]])
def test_impossible_subsets_are_refused(held_out, bad):
    with pytest.raises(ValueError, match="digits-test"):
        held_out.subset(bad)


def test_samples_are_a_count_or_all_and_halves_are_disjoint(held_out):
    assert held_out.take("all") is held_out.take(5000) is held_out
    np.testing.assert_array_equal(held_out.take(40).indices, held_out.subset(40, seed=0).indices)
    first, second = held_out.take(31).halves(seed=2)
    assert (len(first), len(second)) == (15, 16)
    assert sorted([*first.indices, *second.indices]) == held_out.take(31).indices.tolist()
    with pytest.raises(ValueError, match="two halves need at least 2 images"):
        held_out.take(1).halves()


def test_images_that_can_be_read_are_told_from_those_that_cannot(tree):
    (tree / "cat" / "1.png").write_bytes(b"no image")
    found = load(f"folder:{tree}")
    assert found.readable("record").indices.tolist() == [0, 2, 3, 4]
    assert found.readable("record", most=2).indices.tolist() == [0, 2]
    assert found.readable(most=1).indices.tolist() == [0]
    whole = found.subset([0, 2])
    assert whole.readable() is whole
    with pytest.raises(UnreadableImage, match=r"cat.1\.png"):
        found.readable()
    with pytest.raises(ValueError, match="none of the 1 images of folder:"):
        found.subset([1]).readable("record")
    with pytest.raises(ValueError, match="unknown on_error 'skip'"):
        found.readable("skip")


def test_inconsistent_datasets_cannot_be_made(held_out):
    for change, said in (
        ({"labels": held_out.labels[:-1]}, "equal counts"),
        ({"classnames": held_out.classnames[:5]}, r"0\.\.4"),
        ({"templates": ("no place for a name",)}, "template"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(held_out, **change)


# ---- folder trees and image files


def test_folder_tree_gives_classes_by_name_and_images_on_demand(tree):
    found = load(f"folder:{tree}")
    assert found.classnames == ("cat", "sea lion")
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    assert isinstance(found.images, Lazy)
    part = found.subset([4, 0, 2]).subset([2, 0])
    assert part.indices.tolist() == [2, 4]
    np.testing.assert_array_equal(part.images[1], np.asarray(Image.open(tree / "sea_lion" / "2.png")))


def test_folder_fingerprint_follows_contents_not_the_place_nor_what_is_no_data(tree, tmp_path_factory):
    first = load(f"folder:{tree}").fingerprint
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(tree, copy)
    for left in ("__MACOSX", "@eaDir", "__pycache__", "$RECYCLE.BIN", ".Trashes"):
        for place in (copy / left / "cat", copy / "cat" / left):
            place.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(place / "a.png")
    (copy / "cat" / "._0.png").write_bytes(b"resource fork")
    (copy / "cat" / "readme.txt").write_text("hello")
    found = load("folder:copy", root=copy.parent)
    assert (found.classnames, found.fingerprint) == (("cat", "sea lion"), first)
    assert "1 files that are no images of a class were left out, the first: cat/readme.txt" in found.notes
    Image.new("RGB", (9, 9)).save(copy / "cat" / "1.png")
    assert load(f"folder:{copy}").fingerprint != first


def test_missing_and_empty_folders_say_what_was_expected(tree, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    (tree / "dog").mkdir()
    (tree / "dog" / "notes.txt").write_text("no images")
    for path, error, said in (
        (empty, ValueError, r"no class folders and no images; expected .*<class name>/<image>.*or images alone"),
        (empty / "nowhere", FileNotFoundError, "nowhere does not exist; expected"),
        (tree / "cat" / "0.png", NotADirectoryError, "is a file; expected"),
        ("", ValueError, "needs a path"),
        (tree, ValueError, r"dog holds no images \(1 other files\)"),
    ):
        with pytest.raises(error, match=said):
            load(f"folder:{path}")


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_unreadable_images_are_errors_that_name_the_file(tree, content):
    victim = tree / "cat" / "1.png"
    victim.write_bytes(victim.read_bytes()[:150] if content == "truncated" else content)
    found = load(f"folder:{tree}")
    assert found.images[0].shape == (9, 12, 3)
    with pytest.raises(UnreadableImage, match=r"1\.png") as caught:
        found.images[1]
    assert caught.value.path == victim.resolve()


def test_every_pixel_format_becomes_uint8_rgb(tmp_path):
    for mode, colour, suffix, expected in (
        ("L", 100, "png", [100, 100, 100]),
        ("1", 1, "png", [255, 255, 255]),
        ("RGBA", (10, 20, 30, 128), "png", [10, 20, 30]),
        ("LA", (50, 10), "png", [50, 50, 50]),
        ("I;16", 0x8080, "png", [128, 128, 128]),
        ("CMYK", (0, 255, 255, 0), "tiff", [255, 0, 0]),
        ("P", 0, "png", [0, 0, 0]),
    ):
        Image.new(mode, (5, 4), colour).save(path := tmp_path / f"x.{suffix}")
        image = read_image(path)
        assert (image.shape, image.dtype, image[2, 2].tolist()) == ((4, 5, 3), np.uint8, expected), mode


def test_exif_rotation_is_applied_and_float_images_are_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (8, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (8, 4, 3)
    Image.new("F", (4, 4), 0.5).save(tmp_path / "x.tiff")
    with pytest.raises(UnreadableImage, match="floating-point"):
        read_image(tmp_path / "x.tiff")
