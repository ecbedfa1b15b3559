"""The published benchmarks, read from disk in the layouts in which their authors, torchvision or CoOp leave them.

    load("imagenet-a", root=DATA)                     a `Dataset` as `apm.data.datasets.load` returns it
    load("imagenet-c/gaussian_noise/5", root=DATA)    one condition of a corruption benchmark

`SETS` is the one table of names, counts, places, licences and sources: `apm.data.check_data` prints it, and the section on
published sets in data/README.md is made from it. Images are decoded on access; a set whose counts are not those of its
authors is an error, unless `partial=True` asks for what is there. Importing this module imports neither torch nor timm.

The nine cross-dataset sets (Modi & Rawat, NeurIPS 2024, Table 3) use the test splits of CoOp (Zhou et al., IJCV 2022), as
the numbers they are compared with do: files split_zhou_*.json, lists of [path, label, class name].
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from apm.data import prompts
from apm.data.corruptions import CONSTANTS, SEVERITIES
from apm.data.corruptions import NAMES as CORRUPTIONS
from apm.data.datasets import SUFFIXES, Dataset, ImageFiles, files_fingerprint, of_system
from apm.project import unknown

EXTRA_CORRUPTIONS = ("gaussian_blur", "saturate", "spatter", "speckle_noise")  # in the downloads, in no average
FLAT = "ILSVRC2012_val_"  # how the names of ImageNet's validation images begin


class MissingSet(FileNotFoundError):
    """Nothing of a published set is where it is looked for. The message says where, in which layout, and who has it."""


class WrongSet(ValueError):
    """A published set is there, but not as its authors left it. The message says what was expected and found."""


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


Condition = tuple[str, int]  # corruption, severity
Reader = Callable[["PublishedSet", Path, Path, "Condition | None", bool], Listing]


@dataclass(frozen=True)
class PublishedSet:
    """One published benchmark: what it is called, how much it holds, where it is expected and who has it."""

    name: str
    title: str
    images: int  # of a corruption benchmark: in each condition
    classes: int
    places: tuple[str, ...]  # folders below the data folder, the first that exists is read
    layout: str
    source: str
    licence: str
    size: str
    prompts: str  # name of a prompt set in apm.data.prompts
    read: Reader = field(repr=False)
    split: str = ""  # CoOp's file, next to the images' folder or above it
    origin: str = ""  # the set whose images these are, changed
    torchvision: str = ""  # its dataset class there, which can download the images

    @property
    def conditions(self) -> bool:
        """Whether the set comes in corruptions and severities."""
        return bool(self.origin)


# ------------------------------------------------------------------------------------------------------------- loading


def names() -> list[str]:
    """Names that `load` knows; of corruption benchmarks the pattern."""
    return [f"{name}/CORRUPTION/SEVERITY" if entry.conditions else name for name, entry in SETS.items()]


def knows(name: str) -> bool:
    """Whether the name, up to its first "/", is one of the published sets."""
    return name.split("/")[0] in SETS


def load(name: str, root: Path | str | None, *, partial: bool = False) -> Dataset:
    """A published set as a `Dataset`: images decoded on access, its class names and prompts, a fingerprint of its bytes.

    A condition of a corruption benchmark carries the name of its clean set, `corruption` and `severity`, as those made by
    `apm.data.corruptions.corrupted`: in ImageNet-C and ImageNet an image has the same place in `indices`, and so in CIFAR-10-C and
    CIFAR-10 in torchvision's format (not in class folders, which lose the published order).
    partial: allow missing images and classes and note their number; wrong labels stay errors.

    Raises ValueError for an unknown name, MissingSet (FileNotFoundError) when it is not there, WrongSet (ValueError) when
    counts, labels, list files or arrays are not as published.
    """
    entry, condition = parse(name)
    listing = find(name, root, partial=partial)
    images = ImageFiles(listing.files) if listing.array is None else listing.array
    identity = [entry.name, *listing.classnames] + ([] if condition is None else [f"{condition[0]} {condition[1]}"])
    files = listing.files or listing.sources
    labels = listing.labels if listing.files else np.zeros(len(files), dtype=np.int64)
    templates = prompts.templates(entry.prompts)
    notes = [f"{entry.title}, {_counts(len(listing), len(listing.classnames))}, {listing.folder}.", listing.note]
    if partial and not _complete(entry, listing):
        notes.insert(1, _part(entry, listing))
    if listing.remark:
        notes.append(f"Images: {listing.remark}.")
    notes.append(f"Licence: {entry.licence}. Prompts: {prompts.describe(templates)}.")
    return Dataset(
        name=entry.origin or entry.name,
        images=images,
        labels=listing.labels,
        classnames=listing.classnames,
        templates=templates,
        fingerprint=files_fingerprint(listing.folder, files, labels, identity),
        indices=np.arange(len(listing)),
        notes=" ".join(note for note in notes if note),
        corruption="none" if condition is None else condition[0],
        severity=0 if condition is None else condition[1],
        remark=listing.remark,
    )


def parse(name: str) -> tuple[PublishedSet, Condition | None]:
    """The set, and for a corruption benchmark the condition, that a name means. Raises ValueError for anything else."""
    head, *rest = name.split("/")
    if head not in SETS:
        raise unknown("published set", name, names())
    entry = SETS[head]
    if not entry.conditions:
        if rest:
            raise ValueError(f"dataset {name}: {head} has no conditions, found {'/'.join(rest)!r} after its name")
        return entry, None
    if len(rest) != 2:
        raise ValueError(f"dataset {name}: name a condition, such as {head}/gaussian_noise/5")
    corruption, severity = rest
    if corruption not in (*CORRUPTIONS, *EXTRA_CORRUPTIONS):
        raise unknown("corruption", corruption, [*CORRUPTIONS, *EXTRA_CORRUPTIONS])
    if severity not in [str(s) for s in SEVERITIES]:
        raise ValueError(f"dataset {name}: severity must be 1 to 5, found {severity!r}")
    return entry, (corruption, int(severity))


def find(name: str, root: Path | str | None, *, partial: bool = False) -> Listing:
    """What there is of a set below `root`, checked against the published counts; no image is read. Raises as `load`."""
    entry, condition = parse(name)
    if root is None:
        raise MissingSet(
            f"dataset {name}: no data folder given: pass root=FOLDER (make: DATA=FOLDER), the one that holds "
            f"{entry.places[0]}. {where(entry)}"
        )
    root = Path(root).expanduser()
    listing = entry.read(entry, root, _place(entry, root), condition, partial)
    if not len(listing):
        raise WrongSet(f"dataset {name}: {listing.folder} holds no images; expected {entry.layout}")
    if not partial and not _complete(entry, listing):
        raise WrongSet(
            f"dataset {name}: expected {_counts(entry.images, entry.classes)}; found "
            f"{_counts(len(listing), len(np.unique(listing.labels)))} in {listing.folder}. "
            "Complete it, or allow a part with partial=True"
        )
    return listing


def where(entry: PublishedSet) -> str:
    """How to get a set: layout, source, licence, size."""
    return f"Expected: {entry.layout}. Get it: {entry.source}. Licence: {entry.licence}. Size: {entry.size}"


def _complete(entry: PublishedSet, listing: Listing) -> bool:
    return (len(listing), len(np.unique(listing.labels))) == (entry.images, entry.classes)


def _part(entry: PublishedSet, listing: Listing) -> str:
    present = len(np.unique(listing.labels))
    return f"ONLY A PART: {len(listing):,} of {entry.images:,} images, {present:,} of {entry.classes:,} classes."


def _counts(images: int, classes: int) -> str:
    return f"{images:,} images" + (f" of {classes:,} classes" if classes > 1 else "")


def _place(entry: PublishedSet, root: Path) -> Path:
    """The folder to read. Raises MissingSet, with a hint where a folder of the set itself was given as the data folder."""
    for place in entry.places:
        if (root / place).is_dir():
            return root / place
    hint = ""
    if not root.is_dir():
        hint = f" The data folder {root} does not exist."
    for place in entry.places:
        first, *rest = Path(place).parts
        if root.name == first and root.joinpath(*rest).is_dir():
            hint = f" {root} is the folder {first} itself: give the folder that holds it, {root.parent}."
    deepest = next(
        (p for p in [root.joinpath(entry.places[0]), *root.joinpath(entry.places[0]).parents] if p.is_dir()), None
    )
    if not hint and deepest is not None:
        inside = sorted(p.name for p in deepest.iterdir() if not of_system(p.name))
        hint = f" {deepest} holds {_first(inside, 5) or 'nothing'}."
    looked = ", ".join(str(root / place) for place in entry.places)
    raise MissingSet(f"dataset {entry.name}: found none of {looked}.{hint} {where(entry)}")


# ------------------------------------------------------------------------------------------------------------- classes


@cache
def wnids(subset: str = "imagenet1k") -> tuple[str, ...]:
    """WordNet ids of ImageNet's classes in the order of their labels, as timm ships them; they are in sorted order too.

    subset: "imagenet1k" (1000), or "imagenet_a" and "imagenet_r", whose 200 are among them.
    """
    if subset == "imagenet1k":
        from timm.data import ImageNetInfo

        return tuple(ImageNetInfo().label_names())
    from importlib import resources

    text = (resources.files("timm.data") / "_info" / f"{subset}_synsets.txt").read_text(encoding="utf-8")
    return tuple(text.split())


@cache
def imagenet_names() -> dict[str, str]:
    """WordNet id -> class name as CLIP's authors edited it (open_clip.IMAGENET_CLASSNAMES, in the order of the labels)."""
    from open_clip import IMAGENET_CLASSNAMES

    return dict(zip(wnids(), IMAGENET_CLASSNAMES, strict=True))


def _imagenet_classes(entry: PublishedSet) -> dict[str, str]:
    """Folder name -> class name, in the order of the labels."""
    if entry.name == "imagenet-v2":
        return {str(label): name for label, name in enumerate(imagenet_names().values())}
    subset = {"imagenet-a": "imagenet_a", "imagenet-r": "imagenet_r"}.get(entry.name, "imagenet1k")
    return {wnid: imagenet_names()[wnid] for wnid in wnids(subset)}


CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish "
    "forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle "
    "mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine "
    "possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar "
    "sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale "
    "willow_tree wolf woman worm"
)
CIFAR100_NAMES = tuple(name.replace("_", " ") for name in _CIFAR100.split())


def _cifar_classes(entry: PublishedSet) -> tuple[str, ...]:
    return CIFAR100_NAMES if entry.classes == 100 else CIFAR10_NAMES


# ---------------------------------------------------------------------------------------------------------- class trees


def _images_in(folder: Path) -> list[Path]:
    """Image files right in a folder, by name; hidden files left out."""
    with os.scandir(folder) as entries:
        found = [e.name for e in entries if not of_system(e.name) and e.name.lower().endswith(SUFFIXES)]
    return [folder / name for name in sorted(found)]


def _folders_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not of_system(e.name))


def _tree(entry: PublishedSet, root: Path, folder: Path, classes: Mapping[str, str], note: str = "") -> Listing:
    """One folder per class; images in the order of labels, then of file names. classes: folder -> name, in label order."""
    label_of = {name: label for label, name in enumerate(classes)}
    present = _folders_in(folder)
    strange = [name for name in present if name not in label_of]
    if len(strange) == len(present):
        raise WrongSet(
            f"dataset {entry.name}: {folder} holds no class folders{_elsewhere(root, folder, label_of)} "
            f"(found {_first(strange) or 'no folder'}); expected {entry.layout}"
        )
    if strange:
        raise WrongSet(
            f"dataset {entry.name}: labels outside the class list: {len(strange)} of {len(present)} folders in {folder} are "
            f"none of its {entry.classes:,} classes, the first: {_first(strange)}. Remove them"
        )
    files: list[Path] = []
    labels: list[int] = []
    for name in sorted(present, key=label_of.__getitem__):
        found = _images_in(folder / name)
        files += found
        labels += [label_of[name]] * len(found)
    return Listing(folder, np.array(labels, dtype=np.int64), tuple(classes.values()), tuple(files), note=note)


def _elsewhere(root: Path, folder: Path, known: Iterable[str]) -> str:
    """Where the class folders are instead, a level or two below or one above: a hint for the error."""
    known = set(known)

    def fits(place: Path) -> bool:
        return place.is_dir() and any(name in known for name in _folders_in(place))

    below = [folder / name for name in _folders_in(folder)]
    candidates = [*below, *(b / name for b in below for name in _folders_in(b)), folder.parent, root]
    right = next((place for place in candidates if fits(place)), None)
    return "" if right is None else f": they are in {right}, on another level; move them to {folder}"


def _first(values: Sequence[object], n: int = 3) -> str:
    return ", ".join(str(value) for value in values[:n]) + (", ..." if len(values) > n else "")


def _lines(path: Path) -> list[str]:
    """Lines of a list file, not the empty ones; Windows line endings and a byte-order mark are taken off."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongSet(f"{path}: expected UTF-8 text: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


# -------------------------------------------------------------------------------------------------------------- readers


def _imagenet_tree(
    entry: PublishedSet, root: Path, folder: Path, condition: Condition | None, partial: bool
) -> Listing:
    """Class folders named by WordNet id; the validation images of ILSVRC-2012 also flat, with their ground truth."""
    if condition is not None:
        folder = _condition_folder(entry, folder, condition)
    if entry.name == "imagenet" and any(p.name.startswith(FLAT) for p in _images_in(folder)):
        return _imagenet_flat(entry, root, folder)
    return _tree(entry, root, folder, _imagenet_classes(entry))


def _condition_folder(entry: PublishedSet, folder: Path, condition: Condition) -> Path:
    corruption, severity = condition
    # The archives (noise, blur, weather, digital, extra) may have been unpacked into folders of their own
    for place in (folder, *(folder / group for group in ("noise", "blur", "weather", "digital", "extra"))):
        if (place / corruption / str(severity)).is_dir():
            return place / corruption / str(severity)
    raise MissingSet(f"dataset {entry.name}: no folder {folder / corruption / str(severity)}. {where(entry)}")


def _imagenet_flat(entry: PublishedSet, root: Path, folder: Path) -> Listing:
    """ILSVRC2012_val_00000001.JPEG to 00050000, in the order of a class tree: by label, then by name."""
    truth, source = _ground_truth(entry, root, folder)
    classes = _imagenet_classes(entry)
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    outside = sorted(set(truth.values()) - set(label_of))
    if outside:
        raise WrongSet(f"{source}: labels outside the class list of ImageNet: {_first(outside)}")
    found: list[tuple[int, Path]] = []
    for path in _images_in(folder):
        wnid = truth.get(path.stem)
        if wnid is None:
            raise WrongSet(f"dataset {entry.name}: {source} has no label for {path}; it has {len(truth):,} labels")
        found.append((label_of[wnid], path))
    found.sort(key=lambda pair: (pair[0], pair[1].name))
    labels = np.array([label for label, _ in found], dtype=np.int64)
    return Listing(folder, labels, tuple(classes.values()), tuple(path for _, path in found), note=f"Labels: {source}.")


def _ground_truth(entry: PublishedSet, root: Path, folder: Path) -> tuple[dict[str, str], Path]:
    """Image name without suffix -> WordNet id, and the file that says so, looked for from the images up to the data folder."""
    above = [folder, *folder.parents]
    places = above[: above.index(root) + 1] if root in above else above[:3]
    for place in places:
        solution = place / "LOC_val_solution.csv"
        if solution.is_file():
            rows = list(csv.reader(_lines(solution)))
            if not rows or rows[0][:2] != ["ImageId", "PredictionString"]:
                raise WrongSet(f"{solution}: expected the columns ImageId,PredictionString; found {rows[:1]}")
            short = [row for row in rows[1:] if len(row) < 2 or not row[1].strip()]
            if short:
                raise WrongSet(f"{solution}: {len(short)} lines without a label, the first: {','.join(short[0])}")
            return {row[0]: row[1].split()[0] for row in rows[1:]}, solution
        synsets = place / "imagenet_2012_validation_synset_labels.txt"
        if synsets.is_file():
            return {f"{FLAT}{i:08d}": wnid for i, wnid in enumerate(_lines(synsets), start=1)}, synsets
        for kit in (place / "ILSVRC2012_devkit_t12" / "data", place / "data", place):
            numbers = kit / "ILSVRC2012_validation_ground_truth.txt"
            if numbers.is_file():
                ids = _devkit_ids(kit / "meta.mat", numbers)
                lines = _lines(numbers)
                outside = sorted({line for line in lines if line not in ids})
                if outside:
                    raise WrongSet(f"{numbers}: labels outside 1..{len(ids)}: {_first(outside)}")
                return {f"{FLAT}{i:08d}": ids[line] for i, line in enumerate(lines, start=1)}, numbers
    raise MissingSet(
        f"dataset {entry.name}: {folder} holds the flat validation images but there is no ground truth in it or above: put "
        "the unpacked ILSVRC2012_devkit_t12/ (data/ILSVRC2012_validation_ground_truth.txt and data/meta.mat) or "
        f"LOC_val_solution.csv into {folder.parent}, or sort the images into class folders"
    )


def _devkit_ids(meta: Path, numbers: Path) -> dict[str, str]:
    """The devkit's own numbers, as text -> WordNet ids. They are not in the order of the class labels."""
    if not meta.is_file():
        raise MissingSet(
            f"{numbers} numbers the classes in the devkit's own order, and {meta}, which says what the numbers mean, is "
            "missing: unpack the whole ILSVRC2012_devkit_t12.tar.gz"
        )
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        synsets = np.atleast_1d(loadmat(meta, squeeze_me=True)["synsets"])
        leaves = synsets[synsets["num_children"].astype(int) == 0]
        return {str(int(i)): str(w) for i, w in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)}
    except (ValueError, KeyError, TypeError, OSError, NotImplementedError, MatReadError) as error:
        raise WrongSet(
            f"{meta}: expected the devkit's structure `synsets` (ILSVRC2012_ID, WNID, num_children): {error}"
        ) from error


def _cifar(entry: PublishedSet, root: Path, folder: Path, condition: Condition | None, partial: bool) -> Listing:
    """torchvision's batches, whose checksums torchvision tests before it reads them; or one folder of images per class."""
    train = entry.name.endswith("-train")
    if not folder.name.startswith("cifar-10"):
        note = "Order: class folders, not that of the published file."
        tree = _tree(entry, root, folder, _cifar_folders(entry, folder), note=note)
        return replace(tree, remark=_not_published(tree.files))
    from torchvision import datasets as torchvision_sets

    kind = torchvision_sets.CIFAR100 if entry.classes == 100 else torchvision_sets.CIFAR10
    try:
        read = kind(root=folder.parent, train=train)
    except RuntimeError as error:
        raise WrongSet(
            f"dataset {entry.name}: the files in {folder} are incomplete or not those published (torchvision: {error}). "
            "Unpack the archive of the CIFAR page again"
        ) from error
    pixels, labels = np.ascontiguousarray(read.data), np.array(read.targets, dtype=np.int64)
    pixels.flags.writeable = labels.flags.writeable = False
    parts = kind.train_list if train else kind.test_list
    sources = tuple(folder / part[0] for part in parts)
    note = "The published files: their checksums agree."
    return Listing(folder, labels, _cifar_classes(entry), array=pixels, sources=sources, note=note)


def _not_published(files: Sequence[Path]) -> str:
    """What a tree of CIFAR's images is, from its first JPEG file, or its first file where none is a JPEG by its name."""
    unknown_pixels = "class folders, not compared with the published files"
    first = next((file for file in files if file.suffix.lower() in (".jpg", ".jpeg")), next(iter(files), None))
    if first is None:
        return unknown_pixels
    try:
        with Image.open(first) as image:  # reads the header only
            table = image.quantization[0] if isinstance(image, JpegImageFile) else None
    except (OSError, KeyError):  # no image: said when it is decoded
        return unknown_pixels
    if table is None:
        return unknown_pixels
    quality = jpeg_quality(table)
    levels = CONSTANTS["cifar-c"]["jpeg_compression"]  # from the mildest, the highest quality, on
    passed = sum(quality <= level for level in levels)
    where = ""
    if quality in levels:
        where = f", that of severity {passed}"
    elif passed:
        where = (
            f", already between severities {passed} and {passed + 1}" if passed < len(levels) else ", beyond severity 5"
        )
    where += " of CIFAR-10-C's JPEG corruption" if where else ""
    return f"JPEG copies in class folders, not the published pixels; quality {quality}{where}"


# Luminance table of the JPEG standard (ITU-T T.81, table K.1) in rows, at quality 50
_LUMINANCE = np.array([
    16, 11, 10, 16, 24, 40, 51, 61,  12, 12, 14, 19, 26, 58, 60, 55,  14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,  18, 22, 37, 56, 68, 109, 103, 77,  24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,  72, 92, 95, 98, 112, 100, 103, 99,
])  # fmt: skip


def jpeg_quality(table: Sequence[int]) -> int:
    """The quality, 1 to 100, at which libjpeg scales the standard's table nearest to this one (64 values, in rows)."""
    scales = [5000 // quality if quality < 50 else 200 - 2 * quality for quality in range(1, 101)]
    scaled = [np.clip((_LUMINANCE * scale + 50) // 100, 1, 255) for scale in scales]
    return 1 + int(np.argmin([np.abs(values - np.array(table)).sum() for values in scaled]))


def _cifar_folders(entry: PublishedSet, folder: Path) -> dict[str, str]:
    """Folder name -> class name; folders may be written with an underscore or a space."""
    present = set(_folders_in(folder))
    return {name if name in present else name.replace(" ", "_"): name for name in _cifar_classes(entry)}


def _cifar_c(entry: PublishedSet, root: Path, folder: Path, condition: Condition | None, partial: bool) -> Listing:
    """CORRUPTION.npy with the five severities one after the other, and labels.npy; read through a memory map."""
    if condition is None:
        raise ValueError(f"dataset {entry.name}: name a condition")
    corruption, severity = condition
    pixels, path = _npy(entry, folder / f"{corruption}.npy", (32, 32, 3), np.uint8)
    labels, labels_path = _npy(entry, folder / "labels.npy", (), None)
    rows, rest = divmod(len(pixels), len(SEVERITIES))
    if rest or len(labels) != len(pixels):
        raise WrongSet(
            f"dataset {entry.name}: expected 5 severities of equal length in {path} and a label for each row in "
            f"{labels_path}; found {len(pixels):,} rows and {len(labels):,} labels"
        )
    blocks = labels.reshape(len(SEVERITIES), rows)
    if (blocks != blocks[0]).any():
        raise WrongSet(
            f"dataset {entry.name}: {labels_path} does not repeat the same labels for each of the 5 severities"
        )
    chosen = slice((severity - 1) * rows, severity * rows)
    return Listing(
        folder, _checked(entry, labels[chosen], labels_path), _cifar_classes(entry), array=pixels[chosen],
        sources=(path, labels_path),
    )  # fmt: skip


def _cifar_new(entry: PublishedSet, root: Path, folder: Path, condition: Condition | None, partial: bool) -> Listing:
    """CIFAR-10.1, version 6: two arrays."""
    pixels, path = _npy(entry, folder / "cifar10.1_v6_data.npy", (32, 32, 3), np.uint8)
    labels, labels_path = _npy(entry, folder / "cifar10.1_v6_labels.npy", (), None)
    if len(labels) != len(pixels):
        raise WrongSet(
            f"dataset {entry.name}: {len(pixels):,} images in {path} but {len(labels):,} labels in {labels_path}"
        )
    return Listing(
        folder, _checked(entry, labels, labels_path), _cifar_classes(entry), array=pixels, sources=(path, labels_path)
    )


def _npy(entry: PublishedSet, path: Path, shape: tuple[int, ...], dtype: type | None) -> tuple[np.ndarray, Path]:
    """An array (N, *shape) as a read-only memory map. dtype None: any integers."""
    if not path.is_file():
        raise MissingSet(f"dataset {entry.name}: no file {path}. {where(entry)}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise WrongSet(f"dataset {entry.name}: {path} is no readable .npy array: {error}") from error
    fits = np.issubdtype(array.dtype, np.integer) if dtype is None else array.dtype == dtype
    if array.ndim != 1 + len(shape) or array.shape[1:] != shape or not fits:
        wanted = "integers" if dtype is None else np.dtype(dtype).name
        raise WrongSet(
            f"dataset {entry.name}: {path} must hold {wanted} of shape (N{''.join(f', {s}' for s in shape)}), found "
            f"{array.dtype} {array.shape}"
        )
    return array, path


def _checked(entry: PublishedSet, labels: np.ndarray, path: Path) -> np.ndarray:
    """Labels in memory as int64. Raises WrongSet for some outside the class list."""
    labels = np.array(labels, dtype=np.int64)
    outside = np.unique(labels[(labels < 0) | (labels >= entry.classes)])
    if len(outside):
        raise WrongSet(
            f"{path}: labels outside the class list 0..{entry.classes - 1} of {entry.name}: {_first(outside.tolist())}"
        )
    labels.flags.writeable = False
    return labels


def _coop(entry: PublishedSet, root: Path, folder: Path, condition: Condition | None, partial: bool) -> Listing:
    """The test list of CoOp's split file. Class names with spaces for underscores, as CoOp's zero-shot prompts have them."""
    path = _split_file(entry, root, folder)
    if path is None:
        raise MissingSet(
            f"dataset {entry.name}: the images are in {folder}, but {entry.split} is neither there nor above, up to {root}. "
            f"It is CoOp's split file, linked in DATASETS.md of github KaiyangZhou/CoOp. {where(entry)}"
        )
    try:
        split = json.loads(path.read_text(encoding="utf-8-sig"))
        lists = {part: [(str(file), int(label), str(name)) for file, label, name in split[part]] for part in split}
        test = lists["test"]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise WrongSet(
            f'{path}: expected {{"train": [[path, label, class name], ...], "val": ..., "test": ...}}: {error!r}'
        ) from error
    names: dict[int, str] = {}
    for _, label, name in (item for part in lists.values() for item in part):
        if names.setdefault(label, name) != name:
            raise WrongSet(f"{path}: label {label} is named both {names[label]!r} and {name!r}")
    if sorted(names) != list(range(len(names))) or (len(names) != entry.classes and not partial):
        raise WrongSet(
            f"{path}: labels outside the class list: expected 0..{entry.classes - 1}, found {len(names)} labels, "
            f"{min(names, default='none')}..{max(names, default='none')}"
        )
    relative = [Path(file.replace("\\", "/")) for file, _, _ in test]  # a list made on Windows has backslashes
    astray = [file for file in relative if file.is_absolute() or ".." in file.parts]
    if astray:
        raise WrongSet(f"{path}: expected paths below {folder}, found {_first(astray)}")
    files = [folder / file for file in relative]
    there = [file.is_file() for file in files]
    missing = [file for file, ok in zip(files, there, strict=True) if not ok]
    if missing and not (partial and any(there)):
        raise WrongSet(
            f"{path} names {len(missing):,} of {len(files):,} files that do not exist, the first: {_first(missing)}"
            f"{_wrong_level(folder, test)}"
        )
    kept = [(file, label) for file, (_, label, _), ok in zip(files, test, there, strict=True) if ok]
    return Listing(
        folder,
        np.array([label for _, label in kept], dtype=np.int64),
        tuple(names[label].replace("_", " ") for label in range(len(names))),
        tuple(file for file, _ in kept),
        note=f"Test split: {path.name}.",
    )


def _split_file(entry: PublishedSet, root: Path, folder: Path) -> Path | None:
    above = [folder, *folder.parents]
    places = above[: above.index(root) + 1] if root in above else above[:2]
    return next((place / entry.split for place in places if (place / entry.split).is_file()), None)


def _wrong_level(folder: Path, test: Sequence[tuple[str, int, str]]) -> str:
    for name in _folders_in(folder):
        if test and (folder / name / test[0][0]).is_file():
            return f". The images are one level deeper, in {folder / name}: move them to {folder}"
    return ""


def _pets(entry: PublishedSet, root: Path, folder: Path, condition: Condition | None, partial: bool) -> Listing:
    """CoOp's split file, or the authors' own list annotations/test.txt: the same images, labels and breeds."""
    if _split_file(entry, root, folder) is not None:
        return _coop(entry, root, folder, condition, partial)
    listed = folder.parent / "annotations" / "test.txt"
    if not listed.is_file():
        raise MissingSet(
            f"dataset {entry.name}: neither {entry.split} nor {listed} is there, one of them says which images are tested. "
            f"{where(entry)}"
        )
    rows = [line.split() for line in _lines(listed) if not line.startswith("#")]
    if any(len(row) != 4 or not row[1].isdigit() for row in rows):
        raise WrongSet(f"{listed}: expected lines `image class species breed`")
    names = {int(label) - 1: image.rsplit("_", 1)[0].replace("_", " ").lower() for image, label, *_ in rows}
    labels = _checked(entry, np.array([int(row[1]) - 1 for row in rows]), listed)
    if not partial and len(names) != entry.classes:
        raise WrongSet(f"{listed}: expected {entry.classes} classes, found {len(names)}")
    return _present(entry, folder, [f"{row[0]}.jpg" for row in rows], labels, _dense(names, labels), listed, partial)


def _aircraft(entry: PublishedSet, root: Path, folder: Path, condition: Condition | None, partial: bool) -> Listing:
    """The authors' variants.txt and images_variant_test.txt, which CoOp uses too; there is no split file of CoOp's."""
    variants, listed = (folder / name for name in ("variants.txt", "images_variant_test.txt"))
    for path in (variants, listed):
        if not path.is_file():
            raise MissingSet(f"dataset {entry.name}: no file {path}. {where(entry)}")
    label_of = {name: label for label, name in enumerate(_lines(variants))}
    if not partial and len(label_of) != entry.classes:
        raise WrongSet(f"{variants}: expected {entry.classes} classes, found {len(label_of)}")
    rows = [line.partition(" ")[::2] for line in _lines(listed)]
    outside = sorted({name for _, name in rows if name not in label_of})
    if outside:
        raise WrongSet(f"{listed}: labels outside the class list of {variants.name}: {_first(outside)}")
    labels = np.array([label_of[name] for _, name in rows], dtype=np.int64)
    images = [f"{image}.jpg" for image, _ in rows]
    return _present(entry, folder / "images", images, labels, tuple(label_of), listed, partial)


def _dense(names: Mapping[int, str], labels: np.ndarray) -> tuple[str, ...]:
    """Names for labels 0..max; of a part of the set, the labels that no line names keep their number as a name."""
    return tuple(names.get(label, f"class {label + 1}") for label in range(int(labels.max()) + 1))


def _present(
    entry: PublishedSet, folder: Path, images: Sequence[str], labels: np.ndarray, names: Sequence[str], listed: Path,
    partial: bool,
) -> Listing:  # fmt: skip
    """The images of a list file. Raises WrongSet for those that do not exist, unless a part is allowed."""
    files = [folder / image for image in images]
    there = np.array([file.is_file() for file in files], dtype=bool)
    missing = [file for file, ok in zip(files, there, strict=True) if not ok]
    if missing and not (partial and there.any()):
        raise WrongSet(
            f"dataset {entry.name}: {listed} names {len(missing):,} of {len(files):,} files that do not exist, the first: "
            f"{_first(missing)}"
        )
    kept = tuple(file for file, ok in zip(files, there, strict=True) if ok)
    return Listing(folder, labels[there], tuple(names), kept, note=f"Test split: {listed.name}.")


def _official(entry: PublishedSet, root: Path, folder: Path, condition: Condition | None, partial: bool) -> Listing:
    """The authors' own test split, as torchvision reads it."""
    from torchvision import datasets as torchvision_sets

    kind = getattr(torchvision_sets, entry.torchvision)
    try:
        read = kind(root=root, split="test", loader=Path)  # the path in place of the image
        pairs = [read[i] for i in range(len(read))]
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise WrongSet(f"dataset {entry.name}: torchvision cannot read {folder}: {error}") from error
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    images = [Path(path).relative_to(folder).as_posix() for path, _ in pairs]
    names = tuple(name.replace("_", " ") for name in read.classes)
    return _present(entry, folder, images, labels, names, folder, partial)


def _photographs(entry: PublishedSet, root: Path, folder: Path, condition: Condition | None, partial: bool) -> Listing:
    """Images without labels: every label is 0."""
    files = _images_in(folder)
    if not files:
        raise WrongSet(f"dataset {entry.name}: {folder} holds no images; expected {entry.layout}")
    return Listing(folder, np.zeros(len(files), dtype=np.int64), ("photograph",), tuple(files), note="No labels.")


# --------------------------------------------------------------------------------------------------------------- table

_MIT_CODE = "none stated for the images; the repository is MIT"
_C_LICENCE = "CC BY 4.0 (Zenodo), of images under ImageNet's terms"
_COOP_SPLIT = "; split file: DATASETS.md of github KaiyangZhou/CoOp"

_ALL = (
    PublishedSet(
        "imagenet", "ImageNet (ILSVRC-2012) validation", 50_000, 1_000,
        ("imagenet/val", "imagenet/images/val", "ILSVRC2012/val", "ILSVRC/Data/CLS-LOC/val"),
        "imagenet/val/<wnid>/ILSVRC2012_val_*.JPEG; or flat, imagenet/val/ILSVRC2012_val_*.JPEG, with "
        "ILSVRC2012_devkit_t12/data/ or LOC_val_solution.csv in imagenet/",
        "image-net.org, after registration (ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz)",
        "ImageNet terms of access: non-commercial research and education", "6.7 GB", "imagenet-80", _imagenet_tree,
    ),
    PublishedSet(
        "imagenet-train", "ImageNet (ILSVRC-2012) training split", 1_281_167, 1_000,
        ("imagenet/train", "imagenet/images/train", "ILSVRC2012/train", "ILSVRC/Data/CLS-LOC/train"),
        "imagenet/train/<wnid>/*.JPEG; only CoOp needs it, 16 images of a class (the first use reads all files once)",
        "image-net.org, after registration (ILSVRC2012_img_train.tar)",
        "ImageNet terms of access: non-commercial research and education", "138 GB", "imagenet-80", _imagenet_tree,
    ),
    PublishedSet(
        "imagenet-a", "ImageNet-A", 7_500, 200, ("imagenet-a", "imagenet-adversarial/imagenet-a"),
        "imagenet-a/<wnid>/*.jpg (200 classes)", "github hendrycks/natural-adv-examples (imagenet-a.tar)",
        _MIT_CODE, "0.7 GB", "imagenet-80", _imagenet_tree,
    ),
    PublishedSet(
        "imagenet-v2", "ImageNet-V2, matched frequency", 10_000, 1_000,
        (
            "imagenetv2-matched-frequency-format-val", "imagenetv2/imagenetv2-matched-frequency-format-val",
            "imagenetv2-matched-frequency",
        ),
        "imagenetv2-matched-frequency-format-val/<0 to 999>/*.jpeg (the folder's number is the label)",
        "github modestyachts/ImageNetV2 (imagenetv2-matched-frequency)",
        "images: their Flickr licences, used as ImageNet; code MIT", "1.3 GB", "imagenet-80", _imagenet_tree,
    ),
    PublishedSet(
        "imagenet-r", "ImageNet-R", 30_000, 200, ("imagenet-r", "imagenet-rendition/imagenet-r"),
        "imagenet-r/<wnid>/*.jpg (200 classes)", "github hendrycks/imagenet-r (imagenet-r.tar)",
        "none stated for the images", "2.2 GB", "imagenet-80", _imagenet_tree,
    ),
    PublishedSet(
        "imagenet-sketch", "ImageNet-Sketch", 50_889, 1_000, ("imagenet-sketch/images", "imagenet-sketch/sketch", "sketch"),
        "imagenet-sketch/sketch/<wnid>/*.JPEG", "github HaohanWang/ImageNet-Sketch",
        _MIT_CODE, "8.4 GB", "imagenet-80", _imagenet_tree,
    ),
    PublishedSet(
        "imagenet-c", "ImageNet-C", 50_000, 1_000, ("imagenet-c", "ImageNet-C"),
        "imagenet-c/<corruption>/<severity 1 to 5>/<wnid>/*.JPEG",
        "zenodo.org record 2235448, named by github hendrycks/robustness (noise, blur, weather and digital .tar)",
        _C_LICENCE, "about 65 GB", "imagenet-80", _imagenet_tree, origin="imagenet",
    ),
    PublishedSet(
        "cifar10", "CIFAR-10 test split", 10_000, 10,
        ("cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10/test"),
        "cifar-10-batches-py/test_batch (torchvision); or cifar10/test/<class name>/*.png",
        "www.cs.toronto.edu/~kriz/cifar.html", "none stated", "0.2 GB", "cifar10", _cifar, torchvision="CIFAR10",
    ),
    PublishedSet(
        "cifar10-train", "CIFAR-10 training split", 50_000, 10,
        ("cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10/train"),
        "cifar-10-batches-py/data_batch_1 to 5 (torchvision); or cifar10/train/<class name>/*.png",
        "www.cs.toronto.edu/~kriz/cifar.html", "none stated", "0.2 GB", "cifar10", _cifar, torchvision="CIFAR10",
    ),
    PublishedSet(
        "cifar100", "CIFAR-100 test split", 10_000, 100,
        ("cifar-100-python", "cifar100/cifar-100-python", "cifar100/test"),
        "cifar-100-python/test (torchvision); or cifar100/test/<class name>/*.png",
        "www.cs.toronto.edu/~kriz/cifar.html", "none stated", "0.2 GB", "cifar100", _cifar, torchvision="CIFAR100",
    ),
    PublishedSet(
        "cifar10-c", "CIFAR-10-C", 10_000, 10, ("CIFAR-10-C", "cifar10-c"),
        "CIFAR-10-C/<corruption>.npy (50,000 rows, severity 1 first) and CIFAR-10-C/labels.npy",
        "zenodo.org record 2535967, named by github hendrycks/robustness", "CC BY 4.0 (Zenodo)", "2.9 GB", "cifar10",
        _cifar_c, origin="cifar10",
    ),
    PublishedSet(
        "cifar100-c", "CIFAR-100-C", 10_000, 100, ("CIFAR-100-C", "cifar100-c"),
        "CIFAR-100-C/<corruption>.npy (50,000 rows, severity 1 first) and CIFAR-100-C/labels.npy",
        "zenodo.org record 3555552, named by github hendrycks/robustness", "CC BY 4.0 (Zenodo)", "2.9 GB", "cifar100",
        _cifar_c, origin="cifar100",
    ),
    PublishedSet(
        "cifar10.1", "CIFAR-10.1, version 6", 2_000, 10, ("CIFAR-10.1/datasets", "CIFAR-10.1", "cifar10.1"),
        "CIFAR-10.1/cifar10.1_v6_data.npy and cifar10.1_v6_labels.npy", "github modestyachts/CIFAR-10.1 (datasets/)",
        _MIT_CODE, "6 MB", "cifar10", _cifar_new,
    ),
    PublishedSet(
        "flowers102", "Oxford Flowers 102, CoOp's test split", 2_463, 102, ("oxford_flowers/jpg", "flowers-102/jpg"),
        "oxford_flowers/jpg/image_*.jpg and oxford_flowers/split_zhou_OxfordFlowers.json",
        "www.robots.ox.ac.uk/~vgg/data/flowers/102" + _COOP_SPLIT, "none stated", "0.35 GB", "flowers102", _coop,
        split="split_zhou_OxfordFlowers.json", torchvision="Flowers102",
    ),
    PublishedSet(
        "dtd", "Describable Textures, CoOp's test split", 1_692, 47, ("dtd/images", "dtd/dtd/images"),
        "dtd/images/<texture>/*.jpg and dtd/split_zhou_DescribableTextures.json",
        "www.robots.ox.ac.uk/~vgg/data/dtd" + _COOP_SPLIT, "for research purposes", "0.6 GB", "dtd", _coop,
        split="split_zhou_DescribableTextures.json", torchvision="DTD",
    ),
    PublishedSet(
        "pets", "Oxford-IIIT Pets test split", 3_669, 37, ("oxford_pets/images", "oxford-iiit-pet/images"),
        "oxford_pets/images/*.jpg and oxford_pets/split_zhou_OxfordPets.json or oxford_pets/annotations/test.txt",
        "www.robots.ox.ac.uk/~vgg/data/pets" + _COOP_SPLIT, "CC BY-SA 4.0", "0.8 GB", "pets", _pets,
        split="split_zhou_OxfordPets.json", torchvision="OxfordIIITPet",
    ),
    PublishedSet(
        "ucf101", "UCF101, middle frames, test split 1", 3_783, 101, ("ucf101/UCF-101-midframes", "UCF-101-midframes"),
        "ucf101/UCF-101-midframes/<Class_Name>/*.jpg and ucf101/split_zhou_UCF101.json",
        "UCF-101-midframes.zip" + _COOP_SPLIT + " (videos: www.crcv.ucf.edu/data/UCF101.php)", "none stated",
        "less than 1 GB", "ucf101", _coop, split="split_zhou_UCF101.json",
    ),
    PublishedSet(
        "caltech101", "Caltech101, CoOp's test split", 2_465, 100,
        ("caltech-101/101_ObjectCategories", "caltech101/101_ObjectCategories"),
        "caltech-101/101_ObjectCategories/<class>/image_*.jpg and caltech-101/split_zhou_Caltech101.json",
        "data.caltech.edu record 20086" + _COOP_SPLIT, "CC BY 4.0 (CaltechDATA)", "0.14 GB", "caltech101", _coop,
        split="split_zhou_Caltech101.json", torchvision="Caltech101",
    ),
    PublishedSet(
        "food101", "Food-101, CoOp's test split", 30_300, 101, ("food-101/images",),
        "food-101/images/<class>/*.jpg and food-101/split_zhou_Food101.json",
        "data.vision.ee.ethz.ch/cvl/datasets_extra/food-101" + _COOP_SPLIT,
        "images of Foodspotting's users: scientific fair use only", "5 GB", "food101", _coop,
        split="split_zhou_Food101.json", torchvision="Food101",
    ),
    PublishedSet(
        "sun397", "SUN397, test split 1", 19_850, 397, ("sun397/SUN397", "SUN397"),
        "sun397/SUN397/<letter>/<class>/sun_*.jpg and sun397/split_zhou_SUN397.json",
        "vision.princeton.edu/projects/2010/SUN (SUN397.tar.gz)" + _COOP_SPLIT, "none stated", "39 GB", "sun397", _coop,
        split="split_zhou_SUN397.json", torchvision="SUN397",
    ),
    PublishedSet(
        "aircraft", "FGVC-Aircraft variants, test split", 3_333, 100, ("fgvc_aircraft", "fgvc-aircraft-2013b/data"),
        "fgvc_aircraft/images/*.jpg, variants.txt and images_variant_test.txt (the archive's folder data/)",
        "www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft", "non-commercial research only", "2.8 GB", "aircraft", _aircraft,
        torchvision="FGVCAircraft",
    ),
    PublishedSet(
        "eurosat", "EuroSAT (RGB), CoOp's test split", 8_100, 10, ("eurosat/2750",),
        "eurosat/2750/<class>/*.jpg and eurosat/split_zhou_EuroSAT.json", "github phelber/EuroSAT" + _COOP_SPLIT,
        "MIT; Copernicus Sentinel data", "0.1 GB", "eurosat", _coop, split="split_zhou_EuroSAT.json",
        torchvision="EuroSAT",
    ),
    PublishedSet(
        "flowers102-official", "Oxford Flowers 102, the authors' test split", 6_149, 102, ("flowers-102/jpg",),
        "flowers-102/jpg/image_*.jpg, imagelabels.mat and setid.mat (torchvision)",
        "www.robots.ox.ac.uk/~vgg/data/flowers/102", "none stated", "0.35 GB", "flowers102", _official,
        torchvision="Flowers102",
    ),
    PublishedSet(
        "dtd-official", "Describable Textures, the authors' test split 1", 1_880, 47, ("dtd/dtd/images",),
        "dtd/dtd/images/<texture>/*.jpg and dtd/dtd/labels/test1.txt (torchvision)",
        "www.robots.ox.ac.uk/~vgg/data/dtd", "for research purposes", "0.6 GB", "dtd", _official, torchvision="DTD",
    ),
    PublishedSet(
        "food101-official", "Food-101, the authors' test split", 25_250, 101, ("food-101/images",),
        "food-101/images/<class>/*.jpg and food-101/meta/test.json (torchvision)",
        "data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
        "images of Foodspotting's users: scientific fair use only", "5 GB", "food101", _official, torchvision="Food101",
    ),
    PublishedSet(
        "coco-train", "COCO train2017, images only", 118_287, 1, ("coco/train2017", "train2017"),
        "coco/train2017/*.jpg", "cocodataset.org (train2017.zip)", "images: Flickr terms of use", "19 GB", "single",
        _photographs,
    ),
    PublishedSet(
        "coco-val", "COCO val2017, images only", 5_000, 1, ("coco/val2017", "val2017"),
        "coco/val2017/*.jpg", "cocodataset.org (val2017.zip)", "images: Flickr terms of use", "1 GB", "single",
        _photographs,
    ),
)  # fmt: skip

SETS: dict[str, PublishedSet] = {entry.name: entry for entry in _ALL}
