"""The sets that a notebook asks for: several by name, a choice of their images, their corrupted forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from apm.data import Dataset, UnreadableImage, corruptions, prompts
from apm.data import load as load_dataset
from apm.data.digits import SIDE
from apm.data.published_sets import MissingSet
from apm.project.paths import say

MINIMUM_SAMPLES = 10  # images that an interval needs (`apm.analysis.stats`): said before the long runs


def check_samples(samples: Any) -> None:
    """Raises ValueError for what is neither "all" nor a number of images that is enough for an interval."""
    if samples != "all" and not (type(samples) is int and samples >= MINIMUM_SAMPLES):
        raise ValueError(
            f'samples must be "all" or a whole number of at least {MINIMUM_SAMPLES} images (for an interval), found {samples!r}'
        )


def load_sets(
    names: Sequence[str],
    samples: int | str = "all",
    *,
    ensemble: str | list[str] | tuple[str, ...] | None = None,
    **options: Any,
) -> list[Dataset]:
    """The datasets of these names, of each a choice of images (`Dataset.take`). NAME?: where it is in DATA, else left out, which is said.

    ensemble: the prompts of all of them, or their name, such as "imagenet-7" (`apm.data.prompts.names`); None: each set's own. options:
    of `apm.data.load`. Raises ValueError for no names, a name given twice, too few samples, unknown prompts, and as `load` does.
    """
    check_samples(samples)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected names of datasets, each once, found {list(names)}")
    loaded = [d.take(samples) for name in names if (d := _there(name, **options))]
    if ensemble is None:
        return loaded
    chosen = prompts.check(ensemble) if isinstance(ensemble, list | tuple) else prompts.templates(ensemble)
    return [replace(d, templates=chosen) for d in loaded]


def _there(name: str, **options: Any) -> Dataset | None:
    """The dataset, or None for a NAME? that is not in DATA."""
    try:
        return load_dataset(name.removesuffix("?"), **options)
    except MissingSet as error:
        if not name.endswith("?"):
            raise
        say(f"left out: {error}")
        return None


def examples(dataset: Dataset, count: int) -> list[np.ndarray]:
    """Up to `count` images (H, W, 3) of a stratified choice, to be shown; a grey square for one that cannot be read."""
    shown = []
    for i in dataset.positions(count):
        try:
            shown.append(np.asarray(dataset.images[i]))
        except UnreadableImage:
            shown.append(np.full((SIDE, SIDE, 3), 128, dtype=np.uint8))
    return shown


def corrupted_sets(
    data: Dataset, kinds: Sequence[str], levels: Sequence[int], *, source: str | None = None, seed: int = 0
) -> list[Dataset]:
    """The images of a dataset under every corruption and severity, severities outermost.

    source: None: made by `apm.data.corruptions`; "cifar10-c", "imagenet-c", ...: the published download of the same images, read
    from disk. Raises ValueError where the download has fewer images than `data` refers to, or other labels there: then its
    images are not in the order of `data`, and every prediction would be paired with that of another image.
    """
    conditions = [(kind, level) for level in levels for kind in kinds]
    if source is None:
        return [corruptions.corrupted(data, kind, level, seed=seed) for kind, level in conditions]
    made, last = [], int(data.indices.max())
    for kind, level in conditions:
        whole = load_dataset(name := f"{source}/{kind}/{level}")
        if len(whole) <= last:
            raise ValueError(
                f"{name} has {len(whole)} images, {data.name} refers to image {last}: is it the corrupted form of another set?"
            )
        part = whole.subset(data.indices)
        if (agreeing := (part.labels == data.labels).mean()) < 1:
            raise ValueError(
                f"{name} and {data.name} have the same label on {100 * agreeing:.1f} % of the images only, so they are in another "
                "order. The download follows the published order: read the clean images in it too (CIFAR: torchvision's files, not "
                "folders of images by class), or set corruption_set: null to make the corrupted images here"
            )
        made.append(replace(part, templates=data.templates))
    return made
