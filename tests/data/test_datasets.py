import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from apm.data import datasets


@pytest.fixture(scope="module")
def held_out():
    return datasets.load("digits-test")


@pytest.fixture(scope="module")
def printed():
    return datasets.load("printed-digits")


@pytest.fixture
def tree(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("sea_lion", 3), ("cat", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_importing_datasets_does_not_import_torch():
    code = "import sys, apm.data.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_digit_halves_are_disjoint_stratified_and_complete(held_out):
    train = datasets.load("digits-train")
    assert len(train) + len(held_out) == 1797
    as_bytes = [{image.tobytes() for image in d.images} for d in (train, held_out)]
    assert not as_bytes[0] & as_bytes[1]
    difference = np.bincount(train.labels) - np.bincount(held_out.labels)
    assert abs(difference).max() <= 1


def test_digits_are_32_px_rgb_of_the_stored_scans(held_out):
    from sklearn.datasets import load_digits

    assert held_out.images.shape == (899, 32, 32, 3)
    assert held_out.images.dtype == np.uint8
    block_means = held_out.images[0, ..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
    distances = np.abs(load_digits().images * (255 / 16) - block_means).mean(axis=(1, 2))
    assert distances.min() < 20 < np.median(distances)
    assert load_digits().target[distances.argmin()] == held_out.labels[0]


def test_loading_twice_gives_the_same_bytes_and_another_seed_another_fingerprint(held_out, printed):
    for first in (held_out, printed):
        again = datasets.load(first.name)
        assert again.fingerprint == first.fingerprint
        np.testing.assert_array_equal(again.images, first.images)
        assert datasets.load(first.name, seed=1).fingerprint != first.fingerprint


def test_fingerprint_depends_on_pixels_labels_and_class_names(held_out):
    images, labels, names = held_out.images[:20], held_out.labels[:20], held_out.classnames
    changed = images.copy()
    changed[7, 3, 4, 1] ^= 1
    other = labels.copy()
    other[0] = (other[0] + 1) % 10
    prints = {
        datasets.fingerprint(images, labels, names),
        datasets.fingerprint(changed, labels, names),
        datasets.fingerprint(images, other, names),
        datasets.fingerprint(images, labels, names[::-1]),
    }
    assert len(prints) == 4


def test_printed_digits_are_balanced_over_classes_and_families(printed):
    assert (np.bincount(printed.labels) >= 60).all()
    assert set(printed.groups) == set(datasets.FONTS)
    for family in datasets.FONTS:
        counts = np.bincount(printed.labels[np.array(printed.groups) == family], minlength=10)
        assert (counts == counts[0]).all()


def test_every_printed_digit_is_bright_on_black_and_differs_from_the_others(printed):
    assert printed.images.max(axis=(1, 2, 3)).min() >= 160
    assert printed.images[:, ::31, ::31].mean() < 5  # corners
    assert len({image.tobytes() for image in printed.images}) == len(printed)


def test_subset_keeps_labels_indices_groups_and_fingerprint_together(printed):
    part = printed.subset(37, seed=3).subset([5, 2])
    for i in range(2):
        at = part.indices[i]
        np.testing.assert_array_equal(part.images[i], printed.images[at])
        assert part.labels[i] == printed.labels[at]
        assert part.groups[i] == printed.groups[at]
    assert part.fingerprint == printed.fingerprint


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 899), seed=st.integers(0, 5))
def test_counted_subsets_are_stratified_deterministic_and_nested(held_out, n, seed):
    part = held_out.subset(n, seed=seed)
    assert len(part) == n
    np.testing.assert_array_equal(part.indices, held_out.subset(n, seed=seed).indices)
    share = np.bincount(held_out.labels) * n / len(held_out)
    assert np.abs(np.bincount(part.labels, minlength=10) - share).max() <= 1.01
    assert set(held_out.subset(max(1, n - 1), seed=seed).indices) <= set(part.indices)


def test_small_subsets_do_not_always_hold_the_same_classes(held_out):
    assert len({tuple(np.sort(held_out.subset(3, seed=s).labels)) for s in range(10)}) > 3


@pytest.mark.parametrize("bad", [0, 900, -1, [], [899], [-1], [4, 4]])
def test_impossible_subsets_are_refused(held_out, bad):
    with pytest.raises(ValueError, match="digits-test"):
        held_out.subset(bad)


def test_unknown_dataset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"digit-test.*digits-test.*printed-digits.*folder:PATH"):
        datasets.load("digit-test")


def test_inconsistent_datasets_cannot_be_made(held_out):
    with pytest.raises(ValueError, match="equal counts"):
        replace(held_out, labels=held_out.labels[:-1])
    with pytest.raises(ValueError, match=r"0\.\.4"):
        replace(held_out, classnames=held_out.classnames[:5])
    with pytest.raises(ValueError, match="template"):
        replace(held_out, templates=("no place for a name",))


# ---- folder trees


def test_folder_tree_gives_classes_by_name_and_images_on_demand(tree):
    found = datasets.load(f"folder:{tree}")
    assert found.classnames == ("cat", "sea lion")
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1, 1])
    assert found.images[4].shape == (9, 12, 3)
    assert found.array([0, 3]).shape == (2, 9, 12, 3)
    np.testing.assert_array_equal(found.images[4], np.asarray(Image.open(tree / "sea_lion" / "2.png")))


def test_folder_path_may_be_relative_to_a_root(tree):
    assert (
        datasets.load(f"folder:{tree.name}", root=tree.parent).fingerprint
        == datasets.load(f"folder:{tree}").fingerprint
    )


def test_folder_fingerprint_follows_contents_not_the_place(tree, tmp_path_factory):
    import shutil

    first = datasets.load(f"folder:{tree}").fingerprint
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(tree, copy)
    assert datasets.load(f"folder:{copy}").fingerprint == first
    Image.new("RGB", (9, 9)).save(copy / "cat" / "1.png")
    assert datasets.load(f"folder:{copy}").fingerprint != first


def test_subset_of_a_folder_stays_lazy_and_aligned(tree):
    part = datasets.load(f"folder:{tree}").subset([4, 0, 2]).subset([2, 0])
    np.testing.assert_array_equal(part.indices, [2, 4])
    np.testing.assert_array_equal(part.images[1], np.asarray(Image.open(tree / "sea_lion" / "2.png")))


def test_hidden_files_are_ignored_and_other_files_named_in_the_notes(tree):
    before = datasets.load(f"folder:{tree}").fingerprint
    (tree / "cat" / "._0.png").write_bytes(b"resource fork")
    (tree / ".cache").mkdir()
    (tree / "cat" / "readme.txt").write_text("hello")
    found = datasets.load(f"folder:{tree}")
    assert found.fingerprint == before
    assert "readme.txt" in found.notes


def test_missing_and_empty_folders_say_what_was_expected(tree, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match=r"no class folders; expected .*<class name>/<image>"):
        datasets.load(f"folder:{empty}")
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; expected"):
        datasets.load(f"folder:{empty}/nowhere")
    with pytest.raises(NotADirectoryError):
        datasets.load(f"folder:{tree}/cat/0.png")
    with pytest.raises(ValueError, match="needs a path"):
        datasets.load("folder:")
    (tree / "dog").mkdir()
    (tree / "dog" / "notes.txt").write_text("no images")
    with pytest.raises(ValueError, match=r"dog holds no images \(1 other files\)"):
        datasets.load(f"folder:{tree}")


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_unreadable_images_are_errors_that_name_the_file(tree, content):
    victim = tree / "cat" / "1.png"
    victim.write_bytes(victim.read_bytes()[:150] if content == "truncated" else content)
    found = datasets.load(f"folder:{tree}")
    assert found.images[0].shape == (9, 12, 3)
    with pytest.raises(datasets.UnreadableImage, match=r"1\.png") as caught:
        found.images[1]
    assert caught.value.path == victim.resolve()


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("L", 100, "png", (100, 100, 100)),
        ("1", 1, "png", (255, 255, 255)),
        ("RGBA", (10, 20, 30, 128), "png", (10, 20, 30)),
        ("LA", (50, 10), "png", (50, 50, 50)),
        ("I;16", 0x8080, "png", (128, 128, 128)),
        ("CMYK", (0, 255, 255, 0), "tiff", (255, 0, 0)),
        ("P", 0, "png", None),
    ],
)
def test_every_pixel_format_becomes_uint8_rgb(tmp_path, mode, colour, suffix, expected):
    path = tmp_path / f"x.{suffix}"
    Image.new(mode, (5, 4), colour).save(path)
    image = datasets.read_image(path)
    assert image.shape == (4, 5, 3)
    assert image.dtype == np.uint8
    if expected is not None:
        assert tuple(image[2, 2]) == expected


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (8, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert datasets.read_image(tmp_path / "x.jpg").shape == (8, 4, 3)


def test_float_images_are_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "x.tiff")
    with pytest.raises(datasets.UnreadableImage, match="floating-point"):
        datasets.read_image(tmp_path / "x.tiff")


def test_array_of_images_of_different_sizes_is_an_error(tree):
    Image.new("RGB", (5, 5)).save(tree / "cat" / "1.png")
    with pytest.raises(ValueError, match="position 1"):
        datasets.load(f"folder:{tree}").array([0, 1])


# ---- domains and label spaces made of the held-out digits

DOMAINS = ["digits-inverted", "digits-edges", "digits-thick", "digits-thin", "digits-coloured", "digits-photo"]


@pytest.mark.parametrize("name", DOMAINS)
def test_domains_change_the_picture_and_nothing_else(name, held_out):
    domain = datasets.load(name)
    assert domain.images.shape == held_out.images.shape
    assert domain.images.dtype == np.uint8
    np.testing.assert_array_equal(domain.labels, held_out.labels)
    np.testing.assert_array_equal(domain.indices, held_out.indices)
    assert (domain.classnames, domain.templates) == (held_out.classnames, held_out.templates)
    assert domain.origin == held_out.name
    assert domain.fingerprint != held_out.fingerprint
    assert all((a != b).any() for a, b in zip(domain.images, held_out.images, strict=True))
    np.testing.assert_array_equal(domain.images, datasets.load(name).images)


def test_what_each_domain_does(held_out):
    grey = held_out.images[..., 0].astype(int)
    load = {name: datasets.load(name).images.astype(int) for name in DOMAINS}
    np.testing.assert_array_equal(load["digits-inverted"][..., 0], 255 - grey)
    assert set(np.unique(load["digits-edges"])) == {0, 255}
    assert (load["digits-edges"].max(axis=(1, 2, 3)) == 255).all()  # no empty picture
    assert (load["digits-thick"][..., 0] >= grey).all()
    assert load["digits-thin"].mean() < grey.mean() / 1.5
    assert (load["digits-thin"].max(axis=(1, 2, 3)) >= 128).all()
    paper, ink = load["digits-coloured"].min(axis=(1, 2)), load["digits-coloured"].max(axis=(1, 2))  # (N, 3)
    assert paper.max() <= 77
    assert ink.min() >= 128
    assert (np.ptp(load["digits-coloured"], axis=-1).max(axis=(1, 2)) > 0).mean() > 0.99  # not grey


def test_hard_digits_are_those_that_the_nearest_class_mean_gets_wrong(held_out):
    from sklearn.neighbors import NearestCentroid

    train, hard = datasets.load("digits-train"), datasets.load("digits-hard")
    model = NearestCentroid().fit(train.images[..., 0].reshape(len(train), -1), train.labels)
    predicted = model.predict(held_out.images[..., 0].reshape(len(held_out), -1))
    np.testing.assert_array_equal(hard.indices, np.flatnonzero(predicted != held_out.labels))
    np.testing.assert_array_equal(hard.images, held_out.images[hard.indices])
    assert hard.origin == held_out.name


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("digits-numerals", lambda d: str(d)),
        ("digits-below-five", lambda d: datasets.DIGIT_NAMES[d] if d < 5 else None),
        ("digits-lookalikes", lambda d: datasets.DIGIT_NAMES[d] if d in (1, 3, 5, 8, 9) else None),
        ("digits-lists", lambda d: "zero, one, two, three or four" if d < 5 else "five, six, seven, eight or nine"),
        ("digits-size", lambda d: "number less than five" if d < 5 else "number five or more"),
        ("digits-parity", lambda d: "odd number" if d % 2 else "even number"),
    ],
)
def test_label_spaces_rename_the_digits(name, label, held_out):
    renamed = datasets.load(name)
    digits = held_out.labels[renamed.indices]
    assert [renamed.classnames[i] for i in renamed.labels] == [label(int(d)) for d in digits]
    assert len(renamed) == sum(label(int(d)) is not None for d in held_out.labels)
    np.testing.assert_array_equal(renamed.images, held_out.images[renamed.indices])
    assert renamed.origin == held_out.name


@pytest.mark.parametrize(("name", "count"), [("printed-arabic-indic", 280), ("printed-letters", 400)])
def test_printed_signs_are_balanced_visible_and_different(name, count):
    signs = datasets.load(name)
    assert len(signs) == count
    assert set(np.bincount(signs.labels)) == {count // 10}
    assert signs.images.max(axis=(1, 2, 3)).min() >= 128
    means = np.stack([signs.images[signs.labels == c].mean(axis=0).ravel() for c in range(10)])
    distances = np.linalg.norm(means[:, None] - means, axis=2) + 1e9 * np.eye(10)
    assert distances.min() > 200  # no two signs drawn alike, as placeholders for missing glyphs would be
    assert datasets.load(name, seed=1).fingerprint != signs.fingerprint


@pytest.mark.parametrize("left", ["__MACOSX", "@eaDir", "__pycache__", "$RECYCLE.BIN", ".Trashes"])
def test_folders_that_a_system_left_are_no_classes(tmp_path: Path, left: str) -> None:
    for place in ("cat", f"cat/{left}", f"{left}/cat", "dog"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / "a.png")
    (tmp_path / left / "notes.txt").write_text("")
    found = datasets.load(f"folder:{tmp_path}")
    assert found.classnames == ("cat", "dog")
    assert len(found) == 2
