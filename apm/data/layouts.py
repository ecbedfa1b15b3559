"""The published sets as they lie on disk, in the layouts in which their authors, torchvision or CoOp leave them.

    load("imagenet-a", DATA)                     a `Dataset`, its images decoded on access
    load("imagenet-c/gaussian_noise/5", DATA)    one condition of a corruption benchmark

A set whose counts are not those of its authors is an error, unless `partial=True` asks for what is there. The nine cross-dataset
sets (Modi & Rawat, NeurIPS 2024, Table 3) use the test splits of CoOp (Zhou et al., IJCV 2022), as the numbers they are
compared with do: files split_zhou_*.json, lists of [path, label, class name].
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from apm.data import prompts
from apm.data.corruptions import CONSTANTS, SEVERITIES
from apm.data.dataset import Dataset, Lazy
from apm.data.files import files_fingerprint, folders_in, images_in, of_system, read_image
from apm.data.published_sets import CLASSES, Condition, MissingSet, PublishedSet, WrongSet, class_folders, parse

PART = "ONLY A PART"  # begins the note on a set of which images are missing
FLAT = "ILSVRC2012_val_"  # how the names of ImageNet's validation images begin


@dataclass(frozen=True, eq=False)
class Listing:
    """What was found on disk, no image read yet: N images as files or in one array (N, H, W, 3) uint8, labels (N,) int64."""

    folder: Path  # fingerprints name the files by their paths below it
    labels: np.ndarray
    classnames: tuple[str, ...]
    files: tuple[Path, ...] = ()  # one image each
    array: np.ndarray | None = None
    sources: tuple[Path, ...] = ()  # the files that hold the array
    note: str = ""
    remark: str = ""  # how the images differ from the published ones, or that nobody compared them

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Place:
    """Where a set is read: its folder, below the data folder `root`."""

    entry: PublishedSet
    root: Path
    folder: Path
    condition: Condition
    partial: bool

    def wrong(self, said: str) -> WrongSet:
        return WrongSet(f"dataset {self.entry.name}: {said}")

    def missing(self, said: str) -> MissingSet:
        return MissingSet(f"dataset {self.entry.name}: {said}. {self.entry.where}")

    def above(self) -> list[Path]:
        """The folder and those above it, up to the data folder."""
        return [place for place in (self.folder, *self.folder.parents) if place.is_relative_to(self.root)]


def load(name: str, root: Path | str | None, *, partial: bool = False) -> Dataset:
    """A published set as a `Dataset`: images decoded on access, its class names and prompts, a fingerprint of its bytes.

    A condition of a corruption benchmark carries the name of its clean set, `corruption` and `severity`, and has an image at the same
    place in `indices` as that (but not as CIFAR in class folders, which lose the published order).
    partial: allow missing images and classes and note their number; wrong labels stay errors.
    Raises ValueError for an unknown name, MissingSet where it is not there, WrongSet where it is not as published.
    """
    entry, condition = parse(name)
    listing = find(name, root, partial=partial)
    corruption, severity = condition or ("none", 0)
    identity = [entry.name, *listing.classnames, *([f"{corruption} {severity}"] if condition else [])]
    files = listing.files or listing.sources
    templates = prompts.templates(entry.prompts)
    notes = [f"{entry.title}, {_counts(len(listing), len(listing.classnames))}, {listing.folder}.", listing.note]
    if partial and not _complete(entry, listing):
        present = len(np.unique(listing.labels))
        part = f"{PART}: {len(listing):,} of {entry.images:,} images, {present:,} of {entry.classes:,} classes."
        notes.insert(1, part)
    notes.append(f"Images: {listing.remark}." if listing.remark else "")
    notes.append(f"Licence: {entry.licence}. Prompts: {prompts.describe(templates)}.")
    return Dataset(
        name=entry.origin or entry.name,
        images=Lazy(listing.files, read_image) if listing.array is None else listing.array,
        labels=listing.labels,
        classnames=listing.classnames,
        templates=templates,
        fingerprint=files_fingerprint(
            listing.folder, files, listing.labels if listing.files else [0] * len(files), identity
        ),
        indices=np.arange(len(listing)),
        notes=" ".join(note for note in notes if note),
        corruption=corruption,
        severity=severity,
        remark=listing.remark,
    )


def find(name: str, root: Path | str | None, *, partial: bool = False) -> Listing:
    """What there is of a set below `root`, checked against the published counts; no image is read. Raises as `load`."""
    entry, condition = parse(name)
    if root is None:
        raise MissingSet(
            f"dataset {name}: no data folder given: pass root=FOLDER (make: DATA=FOLDER), the one that holds "
            f"{entry.places[0]}. {entry.where}"
        )
    root = Path(root).expanduser()
    listing = READERS[entry.read](Place(entry, root, folder_of(entry, root), condition or ("none", 0), partial))
    if not len(listing):
        raise WrongSet(f"dataset {name}: {listing.folder} holds no images; expected {entry.layout}")
    if not partial and not _complete(entry, listing):
        raise WrongSet(
            f"dataset {name}: expected {_counts(entry.images, entry.classes)}; found "
            f"{_counts(len(listing), len(np.unique(listing.labels)))} in {listing.folder}. "
            "Complete it, or allow a part with partial=True"
        )
    return listing


def _complete(entry: PublishedSet, listing: Listing) -> bool:
    return (len(listing), len(np.unique(listing.labels))) == (entry.images, entry.classes)


def _counts(images: int, classes: int) -> str:
    return f"{images:,} images" + (f" of {classes:,} classes" if classes > 1 else "")


def folder_of(entry: PublishedSet, root: Path) -> Path:
    """The folder of a set: the first of its places that exists. Raises MissingSet, with what is there instead."""
    places = [root / place for place in entry.places]
    found = next((place for place in places if place.is_dir()), None)
    if found is not None:
        return found
    there = next((place for place in (places[0], *places[0].parents) if place.is_dir()), Path())
    inside = first([p.name for p in sorted(there.iterdir()) if not of_system(p.name)], 5) or "nothing"
    hint = f"{there} holds {inside}" if root.is_dir() else f"The data folder {root} does not exist"
    for place in map(Path, entry.places):
        if root.name == place.parts[0] and root.joinpath(*place.parts[1:]).is_dir():
            hint = f"{root} is the folder {root.name} itself: give the folder that holds it, {root.parent}"
    looked = ", ".join(map(str, places))
    raise MissingSet(f"dataset {entry.name}: found none of {looked}. {hint}. {entry.where}")


def first(values: Sequence[object], n: int = 3) -> str:
    """The first few of many, for a message."""
    return ", ".join(str(value) for value in values[:n]) + (", ..." if len(values) > n else "")


def _elsewhere(at: Place, names: Iterable[str]) -> str:
    """A hint for an error where one of these lies on another level: one or two below the folder, or above it."""
    names = list(names)
    for place in (*at.folder.glob("*/"), *at.folder.glob("*/*/"), at.folder.parent, at.root):
        if any((place / name).exists() for name in names):
            return f": they are in {place}, on another level; move them to {at.folder}"
    return ""


def _lines(path: Path) -> list[str]:
    """Lines of a list file, not the empty ones; Windows line endings and a byte-order mark are taken off."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongSet(f"{path}: expected UTF-8 text: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _tree(at: Place, classes: Mapping[str, str], note: str = "") -> Listing:
    """One folder per class; images in the order of labels, then of file names. classes: folder -> name, in label order."""
    label_of = {name: label for label, name in enumerate(classes)}
    present = folders_in(at.folder)
    strange = [name for name in present if name not in label_of]
    if len(strange) == len(present):
        raise at.wrong(
            f"{at.folder} holds no class folders{_elsewhere(at, label_of)} (found {first(strange) or 'no folder'}); "
            f"expected {at.entry.layout}"
        )
    if strange:
        raise at.wrong(
            f"labels outside the class list: {len(strange)} of {len(present)} folders in {at.folder} are none of its "
            f"{at.entry.classes:,} classes, the first: {first(strange)}. Remove them"
        )
    found = [(label_of[name], file) for name in present for file in images_in(at.folder / name)]
    return _sorted(at.folder, found, classes, note)


def _sorted(folder: Path, found: list[tuple[int, Path]], classes: Mapping[str, str], note: str) -> Listing:
    found = sorted(found, key=lambda pair: (pair[0], pair[1].name))
    labels = np.array([label for label, _ in found], dtype=np.int64)
    return Listing(folder, labels, tuple(classes.values()), tuple(file for _, file in found), note=note)


# ------------------------------------------------------------------------------------------------------------ ImageNet


def _imagenet(at: Place) -> Listing:
    """Class folders named by WordNet id; the validation images of ILSVRC-2012 also flat, with their ground truth."""
    if at.entry.origin:
        inner = Path(at.condition[0], str(at.condition[1]))
        # The archives may have been unpacked into folders of their own
        places = [at.folder / group / inner for group in ("", "noise", "blur", "weather", "digital", "extra")]
        there = next((place for place in places if place.is_dir()), None)
        if there is None:
            raise at.missing(f"no folder {places[0]}")
        at = replace(at, folder=there)
    classes = class_folders(at.entry)
    flat = images_in(at.folder) if at.entry.name == "imagenet" else []
    if not any(file.name.startswith(FLAT) for file in flat):
        return _tree(at, classes)
    truth, source = _ground_truth(at)
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    outside = sorted(set(truth.values()) - set(label_of))
    if outside:
        raise WrongSet(f"{source}: labels outside the class list of ImageNet: {first(outside)}")
    unnamed = [file for file in flat if file.stem not in truth]
    if unnamed:
        raise at.wrong(f"{source} has no label for {first(unnamed)}; it has {len(truth):,} labels")
    return _sorted(at.folder, [(label_of[truth[file.stem]], file) for file in flat], classes, f"Labels: {source}.")


def _ground_truth(at: Place) -> tuple[dict[str, str], Path]:
    """Image name without suffix -> WordNet id, and the file that says so, looked for from the images up to the data folder."""

    def numbered(ids: Iterable[str]) -> dict[str, str]:
        return {f"{FLAT}{i:08d}": wnid for i, wnid in enumerate(ids, start=1)}

    for place in at.above():
        if (file := place / "LOC_val_solution.csv").is_file():
            head, *rows = [[*row, ""] for row in csv.reader(_lines(file))] or [[]]
            short = [row for row in rows if not row[1].strip()]
            if head[:2] != ["ImageId", "PredictionString"] or short:
                raise WrongSet(
                    f"{file}: expected lines ImageId,PredictionString under that heading; found {short or head}"
                )
            return {row[0]: row[1].split()[0] for row in rows}, file
        if (file := place / "imagenet_2012_validation_synset_labels.txt").is_file():
            return numbered(_lines(file)), file
        for kit in (place / "ILSVRC2012_devkit_t12" / "data", place / "data", place):
            if (file := kit / "ILSVRC2012_validation_ground_truth.txt").is_file():
                ids = _devkit_ids(kit / "meta.mat", file)
                return numbered(ids.get(line, line) for line in _lines(file)), file
    raise at.missing(
        f"{at.folder} holds the flat validation images but there is no ground truth in it or above: put the unpacked "
        "ILSVRC2012_devkit_t12/ (data/ILSVRC2012_validation_ground_truth.txt and data/meta.mat) or LOC_val_solution.csv into "
        f"{at.folder.parent}, or sort the images into class folders"
    )


def _devkit_ids(meta: Path, numbers: Path) -> dict[str, str]:
    """The devkit's own numbers, as text -> WordNet ids. They are not in the order of the class labels."""
    from scipy.io import loadmat

    if not meta.is_file():
        raise MissingSet(
            f"{numbers} numbers the classes in the devkit's own order, and {meta}, which says what the numbers mean, is "
            "missing: unpack the whole ILSVRC2012_devkit_t12.tar.gz"
        )
    try:
        synsets = np.atleast_1d(loadmat(meta, squeeze_me=True)["synsets"])
        leaves = synsets[synsets["num_children"].astype(int) == 0]
        return {str(int(i)): str(w) for i, w in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)}
    except Exception as error:
        raise WrongSet(
            f"{meta}: expected the devkit's structure `synsets` (ILSVRC2012_ID, WNID, num_children): {error}"
        ) from error


# --------------------------------------------------------------------------------------------------------------- CIFAR


def _cifar(at: Place) -> Listing:
    """torchvision's batches, whose checksums torchvision tests before it reads them; or one folder of images per class."""
    if not at.folder.name.startswith("cifar-10"):
        present = folders_in(at.folder)  # may be written with an underscore or a space
        classes = {name if name in present else name.replace(" ", "_"): name for name in class_folders(at.entry)}
        tree = _tree(at, classes, "Order: class folders, not that of the published file.")
        return replace(tree, remark=_not_published(tree.files))
    from torchvision import datasets

    train = at.entry.name.endswith("-train")
    kind = getattr(datasets, at.entry.torchvision)
    try:
        read = kind(root=at.folder.parent, train=train)
    except RuntimeError as error:
        raise at.wrong(
            f"the files in {at.folder} are incomplete or not those published (torchvision: {error}). Unpack the archive of the "
            "CIFAR page again"
        ) from error
    pixels, labels = np.ascontiguousarray(read.data), np.array(read.targets, dtype=np.int64)
    pixels.flags.writeable = labels.flags.writeable = False
    sources = tuple(at.folder / part[0] for part in (kind.train_list if train else kind.test_list))
    note = "The published files: their checksums agree."
    return Listing(at.folder, labels, CLASSES[f"cifar{at.entry.classes}"], array=pixels, sources=sources, note=note)


def _not_published(files: Sequence[Path]) -> str:
    """What a tree of CIFAR's images is, from the first JPEG file in it."""
    lossless = "class folders, not compared with the published files"
    file = next((file for file in files if file.suffix.lower() in (".jpg", ".jpeg")), None)
    try:
        with Image.open(file or "") as image:  # reads the header only
            quality = jpeg_quality(image.quantization[0])  # type: ignore[attr-defined]
    except Exception:  # none; or no image, which is said when it is decoded
        return lossless
    levels = CONSTANTS["cifar-c"]["jpeg_compression"]  # from the mildest, the highest quality, on
    passed = sum(quality <= level for level in levels)
    if quality in levels:
        where = f", that of severity {passed} of CIFAR-10-C's JPEG corruption"
    elif 0 < passed < len(levels):
        where = f", already between severities {passed} and {passed + 1} of CIFAR-10-C's JPEG corruption"
    else:
        where = ", beyond severity 5 of CIFAR-10-C's JPEG corruption" if passed else ""
    return f"JPEG copies in class folders, not the published pixels; quality {quality}{where}"


def jpeg_quality(table: Sequence[int]) -> int:
    """The quality, 1 to 100, at which libjpeg writes a luminance table nearest to this one (64 values)."""
    return 1 + int(np.argmin(np.abs(_jpeg_tables() - np.array(table)).sum(axis=1)))


@cache
def _jpeg_tables() -> np.ndarray:
    tables = []
    for quality in range(1, 101):
        Image.new("L", (8, 8)).save(file := BytesIO(), "JPEG", quality=quality)
        tables.append(Image.open(file).quantization[0])  # type: ignore[attr-defined]
    return np.array(tables)  # (100, 64)


def _cifar_c(at: Place) -> Listing:
    """CORRUPTION.npy with the five severities one after the other, and labels.npy; read through a memory map."""
    corruption, severity = at.condition
    pixels, labels, sources = _arrays(at, f"{corruption}.npy", "labels.npy")
    rows, rest = divmod(len(pixels), len(SEVERITIES))
    if rest or (labels.reshape(len(SEVERITIES), rows) != labels[:rows]).any():
        raise at.wrong(
            f"expected 5 severities of equal length in {sources[0]} and the same labels for each in {sources[1]}; found "
            f"{len(pixels):,} rows"
        )
    chosen = slice((severity - 1) * rows, severity * rows)
    return Listing(
        at.folder, labels[chosen], CLASSES[f"cifar{at.entry.classes}"], array=pixels[chosen], sources=sources
    )


def _cifar_new(at: Place) -> Listing:
    """CIFAR-10.1, version 6: two arrays."""
    pixels, labels, sources = _arrays(at, "cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy")
    return Listing(at.folder, labels, CLASSES["cifar10"], array=pixels, sources=sources)


def _arrays(at: Place, images: str, labels: str) -> tuple[np.ndarray, np.ndarray, tuple[Path, Path]]:
    """Images (N, 32, 32, 3) uint8 as a read-only memory map, labels (N,) int64 in memory, and their files."""
    sources, arrays = (at.folder / images, at.folder / labels), []
    for path, kind, shape in zip(sources, (np.uint8, np.integer), ((32, 32, 3), ()), strict=True):
        if not path.is_file():
            raise at.missing(f"no file {path}")
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            raise at.wrong(f"{path} is no readable .npy array: {error}") from error
        if array.ndim == 0 or array.shape[1:] != shape or not np.issubdtype(array.dtype, kind):
            expected = f"{kind.__name__} of shape (N{''.join(f', {side}' for side in shape)})"
            raise at.wrong(f"{path} must hold {expected}, found {array.dtype} {array.shape}")
        arrays.append(array)
    if len(arrays[0]) != len(arrays[1]):
        raise at.wrong(f"{len(arrays[0]):,} images in {sources[0]} but {len(arrays[1]):,} labels in {sources[1]}")
    return arrays[0], _checked(at, arrays[1], sources[1]), sources


def _checked(at: Place, labels: Sequence[int] | np.ndarray, path: Path) -> np.ndarray:
    """Labels in memory as int64. Raises WrongSet for some outside the class list."""
    labels = np.array(labels, dtype=np.int64)
    outside = np.unique(labels[(labels < 0) | (labels >= at.entry.classes)]).tolist()
    if outside:
        raise WrongSet(
            f"{path}: labels outside the class list 0..{at.entry.classes - 1} of {at.entry.name}: {first(outside)}"
        )
    labels.flags.writeable = False
    return labels


# ------------------------------------------------------------------------------------- cross-dataset sets: lists of files


def _coop(at: Place) -> Listing:
    """The test list of CoOp's split file. Class names with spaces for underscores, as CoOp's zero-shot prompts have them."""
    path = _split_file(at)
    if path is None:
        raise at.missing(
            f"the images are in {at.folder}, but {at.entry.split} is neither there nor above, up to {at.root}. It is CoOp's split "
            "file, linked in DATASETS.md of github KaiyangZhou/CoOp"
        )
    try:
        split = json.loads(path.read_text(encoding="utf-8-sig"))
        # a list made on Windows has backslashes
        lists = {p: [(str(f).replace("\\", "/"), int(label), str(name)) for f, label, name in split[p]] for p in split}
        test = lists["test"]
    except Exception as error:
        raise WrongSet(
            f'{path}: expected {{"train": [[path, label, class name], ...], "val": ..., "test": ...}}: {error!r}'
        ) from error
    names: dict[int, str] = {}
    for _, label, name in (item for part in lists.values() for item in part):
        if names.setdefault(label, name) != name:
            raise WrongSet(f"{path}: label {label} is named both {names[label]!r} and {name!r}")
    if sorted(names) != list(range(len(names))) or (len(names) != at.entry.classes and not at.partial):
        raise WrongSet(
            f"{path}: labels outside the class list: expected 0..{at.entry.classes - 1}, found {len(names)} labels, "
            f"{min(names, default='none')}..{max(names, default='none')}"
        )
    astray = [file for file, _, _ in test if Path(file).is_absolute() or ".." in Path(file).parts]
    if astray:
        raise WrongSet(f"{path}: expected paths below {at.folder}, found {first(astray)}")
    classnames = [names[label].replace("_", " ") for label in range(len(names))]
    return _listed(at, [file for file, _, _ in test], [label for _, label, _ in test], classnames, path)


def _split_file(at: Place) -> Path | None:
    return next((place / at.entry.split for place in at.above() if (place / at.entry.split).is_file()), None)


def _listed(
    at: Place, images: Sequence[str], labels: Sequence[int] | np.ndarray, names: Sequence[str], listed: Path
) -> Listing:
    """The images of a list file, as paths below the folder. Raises WrongSet for those that do not exist, unless a part is allowed."""
    files = [at.folder / image for image in images]
    there = np.array([file.is_file() for file in files], dtype=bool)
    missing = [file for file, ok in zip(files, there, strict=True) if not ok]
    if missing and not (at.partial and there.any()):
        raise at.wrong(
            f"{listed} names {len(missing):,} of {len(files):,} files that do not exist, the first: {first(missing)}"
            f"{_elsewhere(at, images[:1])}"
        )
    kept = tuple(file for file, ok in zip(files, there, strict=True) if ok)
    chosen = np.asarray(labels, dtype=np.int64)[there]
    return Listing(at.folder, chosen, tuple(names), kept, note=f"Test split: {listed.name}.")


def _pets(at: Place) -> Listing:
    """CoOp's split file, or the authors' own list annotations/test.txt: the same images, labels and breeds."""
    if _split_file(at) is not None:
        return _coop(at)
    listed = at.folder.parent / "annotations" / "test.txt"
    if not listed.is_file():
        raise at.missing(f"neither {at.entry.split} nor {listed} is there, one of them says which images are tested")
    rows = [line.split() for line in _lines(listed) if not line.startswith("#")]
    if any(len(row) != 4 or not row[1].isdigit() for row in rows):
        raise WrongSet(f"{listed}: expected lines `image class species breed`")
    labels = _checked(at, [int(row[1]) - 1 for row in rows], listed)
    breeds = {int(row[1]) - 1: row[0].rsplit("_", 1)[0].replace("_", " ").lower() for row in rows}
    # of a part of the list, the labels that no line names keep their number as a name
    names = [breeds.get(label, f"class {label + 1}") for label in range(int(labels.max()) + 1)]
    return _listed(at, [f"{row[0]}.jpg" for row in rows], labels, names, listed)


def _aircraft(at: Place) -> Listing:
    """The authors' variants.txt and images_variant_test.txt, which CoOp uses too; there is no split file of CoOp's."""
    variants, listed = (at.folder / name for name in ("variants.txt", "images_variant_test.txt"))
    for path in (variants, listed):
        if not path.is_file():
            raise at.missing(f"no file {path}")
    names = _lines(variants)
    rows = [line.partition(" ")[::2] for line in _lines(listed)]
    outside = sorted({name for _, name in rows} - set(names))
    if outside:
        raise WrongSet(f"{listed}: labels outside the class list of {variants.name}: {first(outside)}")
    labels = [names.index(name) for _, name in rows]
    return _listed(replace(at, folder=at.folder / "images"), [f"{row[0]}.jpg" for row in rows], labels, names, listed)


def _official(at: Place) -> Listing:
    """The authors' own test split, as torchvision reads it."""
    from torchvision import datasets

    kind = getattr(datasets, at.entry.torchvision)
    try:
        read = kind(root=at.root, split="test", loader=Path)  # the path in place of the image
        pairs = [read[i] for i in range(len(read))]
    except Exception as error:
        raise at.wrong(f"torchvision cannot read {at.folder}: {error}") from error
    images = [Path(path).relative_to(at.folder).as_posix() for path, _ in pairs]
    names = [name.replace("_", " ") for name in read.classes]
    return _listed(at, images, [label for _, label in pairs], names, at.folder)


def _whole(at: Place) -> Listing:
    """All images of a set that torchvision has without splits, in one folder a class, which names it; scenery is no class."""
    folders = [name for name in folders_in(at.folder) if name != "BACKGROUND_Google"]
    names = CLASSES.get(at.entry.name) or [name.replace("_", " ").lower() for name in folders]
    found = [(label, file) for label, name in enumerate(folders) for file in images_in(at.folder / name)]
    return _sorted(at.folder, found, dict(zip(folders, names, strict=True)), "All images: this set has no test split.")


def _photographs(at: Place) -> Listing:
    """Images without labels: every label is 0."""
    files = tuple(images_in(at.folder))
    return Listing(at.folder, np.zeros(len(files), dtype=np.int64), ("photograph",), files, note="No labels.")


READERS: dict[str, Callable[[Place], Listing]] = {  # by `read` in published_sets.yaml
    "imagenet": _imagenet,
    "cifar": _cifar,
    "cifar_c": _cifar_c,
    "cifar_new": _cifar_new,
    "coop": _coop,
    "pets": _pets,
    "aircraft": _aircraft,
    "official": _official,
    "whole": _whole,
    "photographs": _photographs,
}
