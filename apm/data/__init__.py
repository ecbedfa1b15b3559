"""Images with labels and class names, and what is published: datasets by name, corruptions, prompts, published numbers.

    load("digits-test")            made here: handwritten (scikit-learn) and printed digits (`digits`), other renditions (`derived`)
    load("imagenet-sample")        20 labelled photographs that a package carries (`samples`)
    load("imagenet-a", root=DATA)  a published benchmark, read from disk (`published_sets`, `layouts`)
    load("folder:/data/imagenet")  any tree with one folder of images per class; names of them in its classnames.txt
    load("folder:/my", classnames=())   a folder of images without labels

Uses `project`. Images are uint8 RGB arrays; every model applies its own preprocessing to them (`apm.teachers`). Further modules:
`corruptions`, `prompts`, `published` (the paper's numbers) and `check` (which sets are on disk). Nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from apm.data import derived, digits, files, layouts, published_sets, samples
from apm.data.dataset import Dataset, Lazy, UnreadableImage, fingerprint
from apm.data.files import photograph, read_image
from apm.project import data_dir, sha256_of, unknown

OWN: dict[str, Callable[..., Dataset]] = {}


def register(name: str) -> Callable[[Callable[..., Dataset]], Callable[..., Dataset]]:
    """Decorator: makes `load(name)` call the function with `root` (Path or None) and `seed`."""

    def add(loader: Callable[..., Dataset]) -> Callable[..., Dataset]:
        OWN[name] = loader
        return loader

    return add


def names() -> list[str]:
    """Names that `load` knows, besides "folder:PATH"."""
    return sorted([*OWN, *digits.SETS, *samples.SETS, *derived.names(), *published_sets.names()])


def load(
    name: str,
    *,
    root: str | Path | None = None,
    seed: int = 0,
    partial: bool = False,
    classnames: Sequence[str] | None = None,
) -> Dataset:
    """The dataset of that name.

    root: folder of datasets on disk, default: $DATA; a relative PATH of "folder:PATH" starts there. seed: of the handwritten digits'
    split and the printed ones' jitter. partial: take a published set of which images or classes are missing, and say so in its notes;
    $PARTIAL=1 does the same. classnames: among which classes the images of a folder without labels are looked at, where its
    classnames.txt names none; (): ImageNet's; None, for what counts accuracies: such a folder is refused. Raises ValueError for
    an unknown name and for a published set with other counts than its authors', FileNotFoundError for a missing folder.
    """
    base = data_dir() if root is None else Path(root)
    partial = partial or os.environ.get("PARTIAL") == "1"
    if name in OWN:
        return OWN[name](root=base, seed=seed)
    if name in digits.SETS:
        return digits.SETS[name](seed)
    if name in samples.SETS:
        return samples.load(name)
    if name in derived.names():
        return derived.load(name, base, seed=seed, partial=partial)
    if name.split("/")[0] in published_sets.SETS:
        return layouts.load(name, base, partial=partial)
    if name.startswith("folder:"):
        tree = Path(base or "", Path(name.removeprefix("folder:")).expanduser())
        found = files.class_folders(name, base)
        return _named(found, tree) if found.labelled else _unlabelled(found, tree, classnames)
    if name.startswith(("/", ".", "~")) or Path(base or "", name).is_dir():
        raise ValueError(f"unknown dataset {name!r}: a folder is no name. Did you mean 'folder:{name}'?")
    raise unknown("dataset", name, [*names(), "folder:PATH"])


def _named(dataset: Dataset, tree: Path) -> Dataset:
    """The dataset with the class names of its tree's classnames.txt, lines `FOLDER name` (a tab where folders have spaces); as it is
    without such a file. Raises ValueError, naming it, for a folder without a name and a name of two folders."""
    if not (file := tree / files.NAMES).is_file():
        return dataset
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    pairs = [line.strip().split("\t" if "\t" in line else None, 1) for line in lines]
    given = {files.classname(pair[0]): files.classname(pair[1]) for pair in pairs if len(pair) == 2}
    if nameless := [name for name in dataset.classnames if not given.get(name)]:
        raise ValueError(f"{file} names no class for the folder {nameless[0]!r}: expected a line `{nameless[0]} NAME`")
    chosen = tuple(given[name] for name in dataset.classnames)
    if twice := [name for name in chosen if [other.casefold() for other in chosen].count(name.casefold()) > 1]:
        raise ValueError(
            f"{file} names two folders {twice[0]!r}, so that one could never be predicted: give each its own"
        )
    return replace(
        dataset,
        classnames=chosen,
        fingerprint=sha256_of([dataset.fingerprint, *chosen]),
        notes=f"{dataset.notes} Class names: its classnames.txt.",
    )


def _unlabelled(dataset: Dataset, tree: Path, classnames: Sequence[str] | None) -> Dataset:
    """The dataset with the names of its classnames.txt, one a line, else with those given, else with ImageNet's. Raises ValueError where
    labels are needed, and for a name that stands twice in the file."""
    if classnames is None:
        raise ValueError(
            f"dataset {dataset.name}: {tree} holds images without class folders, so without labels, and this counts accuracies: put every "
            f"image into the folder of its class, {tree}/<class name>/. Notebooks 00, 02 (photographs) and 06 take such images"
        )
    chosen, source = tuple(classnames), "those of the teacher"
    if (file := tree / files.NAMES).is_file():
        lines = map(files.classname, file.read_text(encoding="utf-8-sig").splitlines())
        chosen, source = tuple(filter(None, lines)), f"its {files.NAMES}"
        if len({name.casefold() for name in chosen}) < max(len(chosen), 1):
            raise ValueError(f"{file}: expected one class name a line, each once, found {len(chosen)} lines")
    elif not chosen:
        chosen, source = tuple(published_sets.imagenet_names().values()), "ImageNet's"
    return replace(
        dataset,
        classnames=chosen,
        fingerprint=sha256_of([dataset.fingerprint, *chosen]),
        notes=f"{dataset.notes} Class names: {source}.",
    )
