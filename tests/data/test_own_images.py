"""Images and class folders as people bring them: read, or refused in a sentence that names the file; nothing left out in silence."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fakes import damaged
from PIL import Image, ImageFile
from trees import uniform

from apm.data import UnreadableImage, load, read_image
from apm.project import sha256_of


def tree(folder: Path, *names: str) -> Path:
    """A folder for every class, with one image."""
    for i, name in enumerate(names):
        uniform(folder / name / f"{i}.png", 10 * i)
    return folder


def test_a_tree_may_say_the_names_of_its_classes(tmp_path: Path) -> None:
    name = f"folder:{tree(tmp_path, 'n01', 'n02', 'no 3')}"
    plain = load(name)
    (tmp_path / "classnames.txt").write_text("n02\tgreat  white_shark\nn01\ttench\nno 3\tthird\nn09\tnot here\n")
    found = load(name)
    assert found.classnames == ("tench", "great white shark", "third")
    assert found.fingerprint != plain.fingerprint
    assert "Class names: its classnames.txt." in repr(found)
    assert repr(plain).startswith(f"Dataset {name}: 3 images, 3 classes, 1 prompt. Image tree")
    for text, message in (
        ("n01 tench", "no class for the folder 'n02'"),
        ("n01\ta\nn02\tb\nno\tc", "no class for the folder 'no 3'"),
    ):
        (tmp_path / "classnames.txt").write_text(text)
        with pytest.raises(ValueError, match=f"classnames.txt names {message}"):
            load(name)
    (tmp_path / "classnames.txt").write_text("n01\ta\nn02\tA\nno 3\tb")
    with pytest.raises(ValueError, match="names two folders 'a'"):
        load(name)


# ---------------------------------------------------------------------------------------------------------------- images


def exif(orientation: int, *damage: bytes) -> bytes:
    """A block that says how an image is turned, with further entries as cameras and tools write them."""
    entries = [struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0), *damage]
    body = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"Exif\0\0II*\0\x08\0\0\0" + body


BROKEN = struct.pack("<HHII", 0x8769, 4, 1, 10**6)  # a directory beyond the block
FOREIGN = struct.pack("<HHII", 0x011A, 5, 1, 10**6)  # a ratio beyond it
TEXT = struct.pack("<HHI4s", 0x0100, 2, 4, b"abc\0")  # text for a number


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("damage", [(), (BROKEN, FOREIGN, TEXT)], ids=["whole", "damaged"])
def test_an_image_is_turned_by_its_tag_whatever_else_the_block_holds(tmp_path, orientation, damage) -> None:
    from PIL import ImageOps

    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, exif=exif(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.webp")).convert("RGB"))
    Image.fromarray(pixels).save(tmp_path / "b.webp", lossless=True, exif=exif(orientation, *damage))
    np.testing.assert_array_equal(read_image(tmp_path / "b.webp"), expected)


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0" + bytes(20), b"no block at all"])
def test_a_block_that_cannot_be_read_says_nothing_of_the_pixels(tmp_path: Path, block: bytes) -> None:
    Image.new("RGB", (8, 4), (9, 9, 9)).save(tmp_path / "a.jpg", exif=block)
    assert read_image(tmp_path / "a.jpg").shape == (4, 8, 3)


ERRORS = [
    TypeError("a"),
    KeyError(3),
    IndexError(),
    struct.error("b"),
    zlib.error("c"),
    ZeroDivisionError(),
    EOFError(),
]
ERRORS += [RuntimeError("d"), AttributeError("e"), AssertionError(), RecursionError("f"), OverflowError("g")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_decoder_raises_is_about_the_file(tmp_path: Path, monkeypatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    found = load(f"folder:{tree(tmp_path, 'a', 'b')}")
    with monkeypatch.context() as patched:
        patched.setattr(ImageFile.ImageFile, "load", fail)
        with pytest.raises(
            UnreadableImage, match=rf"b.1\.png: .*{error.args[0] if error.args else type(error).__name__}"
        ):
            found.images[1]
        with pytest.raises(ValueError, match="none of the 2 images"):
            found.readable("record")


def test_memory_that_ends_is_no_property_of_an_image_but_names_it(tmp_path: Path, monkeypatch) -> None:
    path = uniform(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError, match=r"a\.png"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jfif", "avif", "JFIF"])
def test_further_suffixes_of_images_are_read(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 6), (200, 0, 0)).save(
            tmp_path / name / f"x.{suffix}", format="AVIF" if suffix == "avif" else "JPEG"
        )
    found = load(f"folder:{tmp_path}")
    assert (len(found), found.images[1].shape) == (2, (6, 8, 3))


# ------------------------------------------------------------------------------------------------------- names of classes

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
PAIRS = [("seven_up", "seven up"), (COMPOSED, DECOMPOSED), ("cat", "Cat"), ("cat", "cat "), ("a_b", "a__b")]
PAIRS += [("\ufb01sh", "fish"), ("stra\u00dfe", "STRASSE"), ("_", "dog"), ("a", "\uff41")]


@pytest.mark.parametrize("pair", PAIRS, ids=ascii)
def test_two_folders_of_one_class_name_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"are one class name, .*rename one"):
        load(f"folder:{tree(tmp_path, *pair)}")


def test_a_class_is_named_alike_however_its_folder_is_written(tmp_path: Path) -> None:
    found = load(f"folder:{tree(tmp_path, DECOMPOSED, 'sea__lion_', 'Ba$$in & <co>')}")
    assert set(found.classnames) == {COMPOSED, "sea lion", "Ba$$in & <co>"}


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
@pytest.mark.parametrize(
    "place", ["caf\udce9/a.png", "cat/caf\udce9.png", "cat/\udcff/a.png", "../caf\udce9/cat/a.png"]
)
def test_a_name_that_is_no_utf8_gets_a_sentence(tmp_path: Path, place: str) -> None:
    root = tree(tmp_path / "tree", "dog")
    file = uniform(tmp_path / "image.png")
    target = root / place
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
    asked = target.parent.parent if ".." in place else root
    with pytest.raises(ValueError, match=r"not (written in )?UTF-8.*rename") as caught:
        load(f"folder:{asked}")
    str(caught.value).encode()  # the sentence itself can be written


@pytest.mark.parametrize(
    "parts", [("train", "val"), ("TEST", "Train"), ("test", "train", "val"), ("docs", "train", "val")]
)
def test_the_parts_of_a_set_are_no_classes(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        tree(tmp_path / part, "cat", "dog")
    with pytest.raises(
        ValueError, match=rf"parts of a set and not classes: name one, such as folder:{tmp_path}/{parts[-1]}"
    ):
        load(f"folder:{tmp_path}")
    assert load(f"folder:{tmp_path / parts[-1]}").classnames == ("cat", "dog")


def test_a_train_is_a_vehicle_where_its_images_lie_in_it(tmp_path: Path) -> None:
    assert load(f"folder:{tree(tmp_path, 'bus', 'train')}").classnames == ("bus", "train")


# ------------------------------------------------------------------------------------------------------------------ links


def test_images_in_linked_folders_count(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", "cat", "dog")
    more = tree(tmp_path / "more", "a", "b")
    (root / "cat" / "more").symlink_to(more)
    (root / "bird").symlink_to(more / "a")
    found = load(f"folder:{root}")
    assert (found.classnames, np.bincount(found.labels).tolist()) == (("bird", "cat", "dog"), [1, 3, 1])


@pytest.mark.parametrize("target", [".", "..", "../..", "cat"])
def test_a_link_to_a_folder_above_adds_nothing_and_ends(tmp_path: Path, target: str) -> None:
    root = tree(tmp_path / "tree", "cat", "dog")
    (root / "cat" / "again").symlink_to(root / "cat" if target == "cat" else target)
    assert load(f"folder:{root}").labels.tolist() == [0, 1]


@pytest.mark.parametrize("place", ["cat/gone.png", "cat/gone", "gone", "cat/loop.png"])
def test_a_link_to_nowhere_is_named(tmp_path: Path, place: str) -> None:
    root = tree(tmp_path / "tree", "cat", "dog")
    (root / place).symlink_to("loop.png" if "loop" in place else "/nowhere")
    with pytest.raises(ValueError, match=rf"{Path(place).name} is a link to .*mend or remove it"):
        load(f"folder:{root}")


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    uniform(tree(tmp_path, "cat", "dog") / "stray.png")
    with pytest.raises(
        ValueError, match=r"2 folders and, beside them, 1 images \(stray.png first\).*every image into the folder"
    ):
        load(f"folder:{tmp_path}")


def test_images_without_class_folders_have_no_labels_and_the_names_that_are_given(tmp_path: Path) -> None:
    for i in range(3):
        uniform(tmp_path / f"{i}.jpg", 10 * i)
    name = f"folder:{tmp_path}"
    with pytest.raises(ValueError, match="without class folders, so without labels, and this counts accuracies"):
        load(name)
    found, of_imagenet = load(name, classnames=("cat", "dog")), load(name, classnames=())
    assert (found.labelled, found.label(0), found.labels.tolist()) == (False, "", [-1, -1, -1])
    assert found.classnames == ("cat", "dog")
    assert "3 images without labels. Class names: those of the teacher." in found.notes
    assert len(of_imagenet.classnames) == 1000
    assert of_imagenet.fingerprint != found.fingerprint
    assert len(found.subset(2)) == 2
    (tmp_path / "classnames.txt").write_text("sea_lion\n\nlynx\n")
    assert load(name, classnames=("cat", "dog")).classnames == ("sea lion", "lynx")
    for text in ("lynx\nLynx\n", "\n"):
        (tmp_path / "classnames.txt").write_text(text)
        with pytest.raises(ValueError, match=r"classnames.txt: expected one class name a line, each once"):
            load(name, classnames=())


# ------------------------------------------------------------------------------------------------- the kept fingerprint


@pytest.mark.parametrize("how", ["zeros", "cut", "flipped", "nothing", "other"])
def test_a_damaged_fingerprint_is_made_again(data: Path, tmp_path: Path, how: str) -> None:
    root = tree(data, "cat", "dog")
    expected = load(f"folder:{root}").fingerprint
    (kept,) = (tmp_path / "cache" / "fingerprints").iterdir()
    whole = kept.read_bytes()
    other = whole.replace(expected.encode(), sha256_of("other").encode())
    kept.write_bytes(other if how == "other" else damaged(whole, how))
    assert load(f"folder:{root}").fingerprint == expected
    assert kept.read_bytes() == whole
