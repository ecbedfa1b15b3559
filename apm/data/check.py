"""Which published sets are there: `python -m apm.data.check --profile paper --data DIR`, which `make check-data` calls.

Which sets those are is read from the profile's YAML files. One line a set: found, missing (where to get it, licence, size, expected
layout) or wrong (expected and found). The exit status is 1 when a set that the profile needs is missing or wrong. No image is decoded.

    --download   first fetch what torchvision can fetch; it needs a connection
    --partial    accept a part of a set, as in a rehearsal on small trees
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from apm.data import corruptions, derived, download, layouts
from apm.data.published_sets import SETS, Condition, MissingSet
from apm.project import among, data_dir, profiles

# what a profile that names the set can be given besides
ALSO = {"cifar10": ("cifar10-c", "cifar10.1"), "cifar100": ("cifar100-c",), "coco-val": ("coco-train",)}
# of a corruption benchmark that no profile is asked about: the level of the paper's Table 2
USUAL = frozenset((corruption, 5) for corruption in corruptions.NAMES)


def needs(profile: str) -> dict[str, frozenset[Condition]]:
    """The published sets that the notebooks of a profile read, each with the conditions asked of a corruption benchmark.

    They are the names of published sets among the profile's values, and the set from which a derived one is made. Raises
    ValueError as `profiles.load`, and FileNotFoundError for a list file that is not there.
    """
    found: dict[str, set[Condition]] = {}
    for notebook in profiles.runs(profile):
        values = profiles.load(profile, notebook)
        lines = profiles.load_lines(profile, values["lines"]) if "lines" in values else []
        for _, text in profiles.texts([values, lines]):
            name, *condition = text.split("/")
            if name in derived.names():
                name = derived.base(name)
            if name in SETS:
                found.setdefault(name, set()).update([(condition[0], int(condition[1]))] if len(condition) == 2 else [])
        if values.get("corruption_set"):
            kinds, levels = corruptions.selection(values["corruptions"], values["severities"])
            curves = corruptions.SEVERITIES if values.get("curve_samples") else ()
            found[values["corruption_set"]].update((kind, level) for kind in kinds for level in {*levels, *curves})
        if values.get("table10"):
            found[values["table10"]["corruption_set"]].update(USUAL)
    return {name: frozenset(conditions) for name, conditions in found.items()}


def optional(profile: str) -> list[str]:
    """The published sets that a profile takes where they are there: NAME? in its files, and what goes with those it needs."""
    texts = {
        text for notebook in profiles.runs(profile) for _, text in profiles.texts(profiles.load(profile, notebook))
    }
    needed = needs(profile)
    also = [also for name in needed for also in ALSO.get(name, ()) if also not in needed]
    return [*(name for name in SETS if f"{name}?" in texts and name not in needed), *also]


def check(
    name: str, data: Path | str | None, *, partial: bool = False, conditions: frozenset[Condition] = USUAL
) -> tuple[str, str]:
    """("found", "missing" or "wrong", what to say about it) of one set; of a corruption benchmark in these conditions, with
    `partial` in some of them."""
    entry, found, lacking = SETS[name], [], dict[str, str]()
    for one in [f"{name}/{kind}/{level}" for kind, level in sorted(conditions)] if entry.origin else [name]:
        try:
            found.append(layouts.find(one, data, partial=partial))
        except MissingSet as error:
            lacking[one] = str(error)
        except (ValueError, OSError) as error:  # wrong, or what may not be read
            return "wrong", str(error)
    if not found:
        return "missing", next(iter(lacking.values()))
    if lacking and not partial:
        missing = f"{len(lacking)} of {len(conditions)} conditions are missing: {layouts.first(list(lacking), 15)}"
        return "wrong", f"{missing}. {entry.where}"
    listing = found[0]
    size = f"{len(listing):,} images" + (f", {entry.classes:,} classes" if entry.classes > 1 else "")
    if len(listing) != entry.images:
        size = f"a part, {len(listing):,} of {entry.images:,} images,"
    if entry.origin:
        folder = layouts.folder_of(entry, Path(data or ".").expanduser())
        return "found", f"{size} in each of {len(found)} conditions in {folder}"
    said = listing.remark or (listing.note.rstrip(".") if listing.array is not None else "")
    return "found", f"{size} in {listing.folder}{said and f': {said}'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 0, 1 for sets that are missing or wrong, 2 for a wrong call."""
    parser = argparse.ArgumentParser(prog="python -m apm.data.check", description="Which published sets are there.")
    parser.add_argument("--profile", default="paper", help="whose sets (default: %(default)s)")
    parser.add_argument("--data", metavar="DIR", help="the folder that holds the sets (default: $DATA)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these sets instead of a profile's")
    parser.add_argument("--partial", action="store_true", help="accept a part of a set")
    parser.add_argument("--download", action="store_true", help="first fetch what torchvision can fetch")
    options = parser.parse_args(arguments)
    try:
        needed = dict.fromkeys(options.only, USUAL) if options.only else needs(options.profile)
        among("published set", needed, SETS)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    extra = [] if options.only else optional(options.profile)
    if not needed:
        print(f"profile {options.profile} needs no downloaded set")
        return 0
    data = Path(options.data).expanduser() if options.data else data_dir()
    if data is None:
        parser.error(f"say where the sets are: --data DIR (with make: make ... PROFILE={options.profile} DATA=DIR)")
    try:
        failed = download.fetch(list(needed), data) if options.download else []
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    missing, width = 0, max(map(len, (*needed, *extra)))
    for name in (*needed, *extra):
        state, text = check(name, data, partial=options.partial, conditions=needed.get(name) or USUAL)
        if state == "wrong" and options.download:
            text += ". Was it unpacked in part? Remove its folder and fetch it again"
        missing += state != "found" and name in needed
        text = f"{'(optional) ' if name in extra else ''}{text.removeprefix(f'dataset {name}: ')}"
        print(f"{state:8} {name:{width}}  {text}", flush=True)
    if missing:
        print(f"{missing} of the {len(needed)} sets that are needed are missing or wrong")
    return 1 if missing or failed else 0


if __name__ == "__main__":
    sys.exit(main())
