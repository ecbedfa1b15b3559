"""The published benchmarks: names, counts, places, licences and sources (published_sets.yaml), and their classes.

How they are read from disk is in `apm.data.layouts`. Importing this imports neither torch nor timm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from apm.data.corruptions import NAMES, SEVERITIES
from apm.project import facts, unknown

CORRUPTIONS = (*NAMES, "gaussian_blur", "saturate", "spatter", "speckle_noise")  # the last are in no average
Condition = tuple[str, int]  # corruption, severity


class MissingSet(FileNotFoundError):
    """Nothing of a published set is where it is looked for. The message says where, in which layout, and who has it."""


class WrongSet(ValueError):
    """A published set is there, but not as its authors left it. The message says what was expected and found."""


@dataclass(frozen=True)
class PublishedSet:
    """One published benchmark: the fields of published_sets.yaml."""

    name: str
    title: str
    images: int  # of a corruption benchmark: in each condition
    classes: int
    places: list[str]
    layout: str
    source: str
    licence: str
    size: float  # GB, of the archives
    prompts: str
    read: str
    split: str = ""
    origin: str = ""  # named for corruption benchmarks: these come in corruptions and severities
    torchvision: str = ""

    @property
    def where(self) -> str:
        """How to get it: layout, source, licence, size."""
        return f"Expected: {self.layout}. Get it: {self.source}. Licence: {self.licence}. Size: {self.size:g} GB"


_FACTS = facts(__file__)
CLASSES: dict[str, tuple[str, ...]] = {name: tuple(found) for name, found in _FACTS.pop("class names").items()}
SETS: dict[str, PublishedSet] = {name: PublishedSet(name, **said) for name, said in _FACTS.items()}


def names() -> list[str]:
    """Names of the sets; of corruption benchmarks the pattern."""
    return [f"{name}/CORRUPTION/SEVERITY" if entry.origin else name for name, entry in SETS.items()]


def parse(name: str) -> tuple[PublishedSet, Condition | None]:
    """The set, and for a corruption benchmark the condition, that a name means. Raises ValueError for anything else."""
    head, *condition = name.split("/")
    if head not in SETS:
        raise unknown("published set", name, names())
    entry = SETS[head]
    if not entry.origin and condition:
        raise ValueError(f"dataset {name}: {head} has no conditions, found {'/'.join(condition)!r} after its name")
    if not entry.origin:
        return entry, None
    if len(condition) != 2:
        raise ValueError(f"dataset {name}: name a condition, such as {head}/gaussian_noise/5")
    corruption, severity = condition
    if corruption not in CORRUPTIONS:
        raise unknown("corruption", corruption, CORRUPTIONS)
    if severity not in map(str, SEVERITIES):
        raise ValueError(f"dataset {name}: severity must be 1 to 5, found {severity!r}")
    return entry, (corruption, int(severity))


@cache
def wnids(subset: str = "imagenet") -> tuple[str, ...]:
    """WordNet ids of the 1000 classes of ImageNet in the order of their labels, which is sorted, as timm ships them.

    subset: "imagenet_a" or "imagenet_r" for the 200 of them that these have.
    """
    return tuple((resources.files("timm.data") / "_info" / f"{subset}_synsets.txt").read_text("utf-8").split())


@cache
def imagenet_names() -> dict[str, str]:
    """WordNet id -> class name as CLIP's authors edited it (open_clip.IMAGENET_CLASSNAMES, in the order of the labels)."""
    from open_clip import IMAGENET_CLASSNAMES

    return dict(zip(wnids(), IMAGENET_CLASSNAMES, strict=True))


def class_folders(entry: PublishedSet) -> dict[str, str]:
    """Folder name -> class name of a set in one folder a class, in the order of the labels."""
    if entry.name.startswith("cifar"):
        return {name: name for name in CLASSES[f"cifar{entry.classes}"]}
    if entry.name == "imagenet-v2":
        return {str(label): name for label, name in enumerate(imagenet_names().values())}
    own = entry.name in ("imagenet-a", "imagenet-r")
    return {wnid: imagenet_names()[wnid] for wnid in wnids(entry.name.replace("-", "_") if own else "imagenet")}
