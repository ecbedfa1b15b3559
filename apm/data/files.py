"""Images in files: reading them, folders of them (`folder:PATH`), what determines their pixels; photographs that libraries ship."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from apm.data import prompts
from apm.data.dataset import Dataset, Lazy, UnreadableImage
from apm.project import atomic_path, cache_dir, sha256_of, unknown
from apm.project.paths import SEAL, check_seal
from apm.project.progress import progress

SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
NAMES = "classnames.txt"  # of a tree: what its classes are called
SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
BYTES = re.compile("[\ud800-\udfff]")  # how Python reads those of a name that is no UTF-8
TURNS = tuple(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)))  # for EXIF's orientations 2 to 8
PHOTOGRAPHS = {  # name: (package, name there, licence as the package states it)
    "astronaut": ("skimage", "astronaut", "NASA, public domain"),
    "cat": ("skimage", "chelsea", "CC0, Stefan van der Walt"),
    "coffee": ("skimage", "coffee", "CC0, Rachel Michetti"),
    "rocket": ("skimage", "rocket", "CC0, SpaceX"),
    "china": ("sklearn", "china.jpg", "CC BY, Zoltan Vas"),
    "flower": ("sklearn", "flower.jpg", "CC BY, dany13"),
}


def photograph(name: str) -> np.ndarray:
    """A real photograph (H, W, 3) uint8 that scikit-image or scikit-learn ships. Raises ValueError with the known names."""
    if name not in PHOTOGRAPHS:
        raise unknown("photograph", name, PHOTOGRAPHS)
    package, inner, _ = PHOTOGRAPHS[name]
    if package == "skimage":
        from skimage import data

        return np.asarray(getattr(data, inner)())
    from sklearn.datasets import load_sample_image

    return np.asarray(load_sample_image(inner))


def read_image(path: Path) -> np.ndarray:
    """An image file's first frame as uint8 RGB (H, W, 3), upright by its EXIF tag; transparency is dropped and CMYK converted by PIL, as
    in CLIP's own preprocessing. Raises UnreadableImage."""
    try:
        with Image.open(path) as opened:
            image = _upright(opened)
            if image.mode.startswith("I"):  # 16-bit grey (mode I;16), or integers that must be such
                values = np.asarray(image).astype(np.int64)
                if values.min() < 0 or values.max() > 65535:
                    raise ValueError(f"grey values {values.min()}..{values.max()} are no 16-bit image")
                image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
            elif image.mode == "F":
                raise ValueError("floating-point pixels have no defined range")
            return np.asarray(image.convert("RGB"))
    except MemoryError as error:
        raise MemoryError(f"there is not enough memory to read the image {path}") from error
    except Exception as error:  # whatever a decoder raises is about the file
        raise UnreadableImage(path, str(error) or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
    """An image turned by its EXIF tag; as it is stored where the block is damaged, which says nothing of the pixels."""
    image.load()
    try:
        turn = range(2, 9).index(image.getexif()[ExifTags.Base.Orientation])
    except Exception:
        return image
    return image.transpose(TURNS[turn])


def of_system(name: str) -> bool:
    """Whether a file or folder is hidden or left by a system: macOS archives, Windows, NAS indices, Python. Never data."""
    left = ("__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found")
    return name.startswith(".") or name.lower() in (*left, "thumbs.db", "desktop.ini")


def _inside(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name, without what a system left. Raises ValueError for a link to nowhere and a name that is no UTF-8."""
    found = sorted((e for e in os.scandir(folder) if not of_system(e.name)), key=lambda e: e.name)
    for entry in found:
        if BYTES.search(entry.name):
            raise ValueError(f"{folder} holds a name that is not UTF-8, {entry.name!a}: rename it, such as by convmv")
        if entry.is_symlink() and not (path := Path(entry.path)).exists():
            raise ValueError(f"{path} is a link to {path.readlink()}, which is not there: mend or remove it")
    return found


def images_in(folder: Path) -> list[Path]:
    """Image files right in a folder, by name; what a system left is no image. Raises ValueError as `_inside`."""
    return [Path(e.path) for e in _inside(folder) if e.name.lower().endswith(SUFFIXES)]


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; those that a system left are none. Raises ValueError as `_inside`."""
    return [e.name for e in _inside(folder) if e.is_dir()]


def _below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The files at any depth below a folder, links followed, but not those to a folder above."""
    if (real := folder.resolve()) not in above:
        for entry in _inside(folder):
            if entry.is_dir():
                yield from _below(Path(entry.path), (*above, real))
            elif entry.is_file():
                yield Path(entry.path)


def classname(written: str) -> str:
    """A class's name as a text tower reads it, of a folder's: spaces for underscores, composed characters (NFC)."""
    return " ".join(unicodedata.normalize("NFC", written.replace("_", " ")).split())


def class_folders(name: str, root: Path | None) -> Dataset:
    """The dataset "folder:PATH": one folder per class, named as `classname` reads it, or images alone, without labels and class names; a
    relative PATH starts at root. Raises FileNotFoundError, NotADirectoryError and ValueError for a path that is no such tree."""
    given = name.removeprefix("folder:")
    if not given:
        raise ValueError("dataset 'folder:' needs a path: folder:PATH, PATH holding one folder of images per class")
    path = Path(root or "", Path(given).expanduser()).resolve()
    if BYTES.search(f"{name}{path}"):
        raise ValueError(f"dataset {name!a}: this path is not written in UTF-8: rename its folders")
    layout = f"expected {path}/<class name>/<image>.jpg (or {', '.join(s for s in SUFFIXES if s != '.jpg')})"
    if not path.exists():
        raise FileNotFoundError(f"dataset {name}: folder {path} does not exist; {layout}")
    if not path.is_dir():
        raise NotADirectoryError(f"dataset {name}: {path} is a file; {layout}")
    classes = folders_in(path)
    loose = images_in(path)
    if not classes and not loose:
        raise ValueError(
            f"dataset {name}: {path} holds no class folders and no images; {layout}, or images alone, without labels"
        )
    if classes and loose:
        raise ValueError(
            f"dataset {name}: {path} holds {len(classes)} folders and, beside them, {len(loose)} images ({loose[0].name} first), so that it "
            "is not clear whether these have labels: put every image into the folder of its class, or all into one folder, without labels"
        )
    parts = [one for one in classes if one.lower() in SPLITS]
    if len(parts) > 1 or (parts and parts == classes and not images_in(path / parts[0])):
        raise ValueError(
            f"dataset {name}: {path} holds {'/, '.join(parts)}/, parts of a set and not classes: name one, such as folder:{path / parts[-1]}"
        )
    named: dict[str, str] = {}  # letter case and forms of a letter are one to a text tower
    for folder in classes:
        other = named.setdefault(unicodedata.normalize("NFKC", classname(folder)).casefold(), folder)
        if other != folder or not classname(folder):
            raise ValueError(
                f"dataset {name}: the class folders {other!a} and {folder!a} in {path} are one class name, "
                f"{classname(folder)!r}, so that one could never be predicted: rename one, or put their images together"
            )
    images, labels = loose, [-1] * len(loose)
    ignored = [path / e.name for e in _inside(path) if not e.is_dir()]
    for label, place in enumerate(path / name for name in classes):
        files = sorted(_below(place, (path, *place.resolve().parents)), key=Path.as_posix)
        found = [file for file in files if file.suffix.lower() in SUFFIXES]
        if not found:
            raise ValueError(
                f"dataset {name}: class folder {place} holds no images ({len(files)} other files); {layout}. "
                "Add images or remove the folder"
            )
        images += found
        labels += [label] * len(found)
        ignored += [file for file in files if file.suffix.lower() not in SUFFIXES]
    notes = f"Image tree {path}: {len(images)} images " + (
        f"in {len(classes)} class folders." if classes else "without labels."
    )
    ignored = [file for file in ignored if file not in loose and file != path / NAMES]
    if ignored:
        notes += f" {len(ignored)} files that are no images of a class were left out, the first: {ignored[0].relative_to(path)}."
    classnames = tuple(map(classname, classes))
    return Dataset(
        name=name,
        images=Lazy(images, read_image),
        labels=np.array(labels, dtype=np.int64),
        classnames=classnames,
        templates=prompts.SINGLE,
        fingerprint=files_fingerprint(path, images, labels, classnames),
        indices=np.arange(len(images)),
        notes=notes,
    )


def files_fingerprint(
    folder: Path, files: Sequence[Path], labels: Sequence[int] | np.ndarray, names: Sequence[str]
) -> str:
    """sha256 over names, labels, the files' paths below `folder` and their bytes: the same wherever the folder lies.

    It is kept in the cache's `fingerprints/`, and holds while labels, paths, sizes and times (ns) are the same: a file replaced by one of
    the same size, its time set back, goes unnoticed. Raises UnreadableImage for a file that cannot be read.
    """
    relative = [file.relative_to(folder).as_posix() for file in files]
    listing, digest = (hashlib.sha256(json.dumps(list(names)).encode()) for _ in range(2))
    for label, file, name in zip(labels, files, relative, strict=True):
        try:
            stat = file.stat()
        except OSError as error:
            raise UnreadableImage(file, error) from error
        listing.update(json.dumps([int(label), name, stat.st_size, stat.st_mtime_ns]).encode())
    kept, known = None, None
    with contextlib.suppress(OSError, ValueError):  # no project and no cache, nothing kept yet, or a damaged file
        kept = cache_dir() / "fingerprints" / f"{sha256_of([str(folder.resolve()), list(names)])}.json"
        check_seal(kept)
        known = json.loads(kept.read_bytes()[:-SEAL])
    if isinstance(known, dict) and known.get("listing") == listing.hexdigest():
        return str(known["fingerprint"])

    with ThreadPoolExecutor(max_workers=8) as pool:  # reading waits for the disk, hashing releases the interpreter lock
        contents: Iterable[str] = pool.map(_file_digest, files)
        if len(files) > 2000:
            contents = progress(contents, total=len(files), desc=f"fingerprint of {folder.name}", unit="file")
        for label, name, content in zip(labels, relative, contents, strict=True):
            digest.update(json.dumps([int(label), name, content]).encode())
    if kept is not None:
        # a cache that cannot be written costs time, nothing else
        with contextlib.suppress(OSError), atomic_path(kept, sealed=True) as temporary:
            temporary.write_text(json.dumps({"listing": listing.hexdigest(), "fingerprint": digest.hexdigest()}))
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableImage(path, error) from error
