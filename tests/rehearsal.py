"""Rehearsal of profile `paper`: every notebook and every table of the paper, on tiny data, in minutes and without a network.

    python tests/rehearsal.py              # or: make rehearse
    python tests/rehearsal.py --folder /tmp/rehearsal --only 05_ablations

What is real: the notebooks, the profile's YAML files, the loaders with trees in the layouts in which the sets are published
(tests/trees.py), the checkpoint formats, and `python -m apm.run`. What is small is listed in `SMALL`, `STUDENT` and `TEACHERS`: numbers of
images and iterations, sizes of students, the device, and the teachers, which are CLIPs of the same kind (QuickGELU, the
same tokenizer and prompts, widths in the same order) with random weights, described by an open_clip configuration and saved
as a state dict in safetensors; DINOv2's is timm's own smallest model with registers. Random weights know nothing: the numbers
in these tables mean nothing, their rows and columns are the point.

The exit status is 1 when a notebook fails, writes to its standard error or leaves out a row or a column.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from apm import check_data, profiles  # noqa: E402
from apm.corruptions import NAMES as CORRUPTIONS  # noqa: E402

PROFILE = "paper"

# ------------------------------------------------------------------------------------------------------ the scratch profile

ITERATIONS = 4
SMALL: dict[str, int] = {  # parameter or option -> at most this, wherever it stands
    **dict.fromkeys(("samples", "curve_samples", "loss_samples", "pairs"), 10),
    **{"train_samples": 30, "embedded": 30, "checked": 2, "examples": 3, "repeats": 1, "timed_iterations": 2, "orders": 2},
    **dict.fromkeys(("iterations", "looks", "measured_after"), ITERATIONS),
    **{"epochs": 2, "views": 4, "clusters": 3, "steps": 3, "size": 48, "batch": 8},
}  # fmt: skip
EVERY = ("01_natural_shifts", "02_corruptions", "03_cross_dataset")  # `samples: all` of these stays: the trees are small
STUDENT: dict[str, Any] = {"grid": [8, 8], "patch": 4, "hidden": [16, 8], "rgb_hidden": [8, 8]}
FIELD_STUDENT = {**STUDENT, "grid": [4, 4], "patch": 14}
WIDTH_DIVISOR = 256  # of the widths in the ablations' lines

# (teacher, pretrained) of the profile -> embed_dim, image size of the small one in its place
CLIPS: dict[tuple[str, str], tuple[int, int]] = {
    ("ViT-B-16-quickgelu", "openai"): (32, 32),
    ("ViT-L-14-quickgelu", "openai"): (48, 32),
    ("ViT-H-14-quickgelu", "dfn5b"): (64, 32),
    ("ViT-H-14-378-quickgelu", "dfn5b"): (64, 48),
}
TIMM = ("timm:vit_large_patch14_reg4_dinov2.lvd142m@448", "timm:vit_small_patch14_reg4_dinov2.lvd142m@56")


def clip_config(width: int, size: int) -> dict[str, Any]:
    """An open_clip configuration of the same form as the real ones, with one layer in each tower."""
    return {
        "embed_dim": width,
        "quick_gelu": True,
        "vision_cfg": {"image_size": size, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }


def make_teachers(folder: Path) -> dict[tuple[str, str | None], tuple[str, str]]:
    """Random-weight checkpoints. Returns (teacher, pretrained) of the profile -> those of the small one in its place."""
    import timm
    import torch
    from open_clip import add_model_config
    from safetensors.torch import save_file

    from apm.teachers import _untrained

    folder.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str | None], tuple[str, str]] = {}
    for (name, tag), (width, size) in CLIPS.items():
        torch.manual_seed(width + size)
        config = folder / f"small-{name}.json"
        config.write_text(json.dumps(clip_config(width, size), indent=1), encoding="utf-8")
        add_model_config(config)
        weights = _untrained(config.stem).state_dict()
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / f"{config.stem}-{tag}.safetensors")
        found[name, tag] = (str(config), str(folder / f"{config.stem}-{tag}.safetensors"))
    torch.manual_seed(0)
    model = TIMM[1].removeprefix("timm:").split("@")[0]
    weights = timm.create_model(model, pretrained=False, num_classes=0).state_dict()  # at the size it is published for
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / f"{model}.safetensors")
    found[TIMM[0], None] = (TIMM[1], str(folder / f"{model}.safetensors"))
    return found


Teachers = Mapping[tuple[str, str | None], tuple[str, str]]


def smaller(value: Any, teachers: Teachers, *, keep_all: bool = False, name: str = "") -> Any:
    """A value of the profile at the rehearsal's size: only what the tables above name is another one."""
    if isinstance(value, dict):
        made = {key: smaller(item, teachers, keep_all=keep_all, name=key) for key, item in value.items()}
        if "teacher" in value:
            pair = (value["teacher"], value.get("pretrained"))
            if pair not in teachers:
                raise ValueError(f"{pair} has no small teacher in its place: add it to CLIPS in tests/rehearsal.py")
            made["teacher"], made["pretrained"] = teachers[pair]
        return made
    if isinstance(value, list) and name == "hidden":
        return [max(4, width // WIDTH_DIVISOR) for width in value]
    if isinstance(value, list):
        made_list = [smaller(item, teachers, keep_all=keep_all, name=name) for item in value]
        return list(dict.fromkeys(made_list)) if all(isinstance(item, int) for item in made_list) else made_list
    if name == "device":
        return "cpu"
    if value == "all" and name == "samples" and not keep_all:
        return SMALL[name]
    if name in SMALL and type(value) is int:
        return min(value, SMALL[name])
    return value


def write_profile(folder: Path, teachers: Teachers, profile: str = PROFILE) -> Path:
    """The profile's YAML files at the rehearsal's size, below `folder`."""
    target = folder / profile
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((profiles.profiles_dir() / profile).glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        made = smaller(values, teachers, keep_all=path.stem in EVERY)
        if isinstance(made, dict):
            for name in ("student", "photo_student"):
                if name in made:
                    made[name] |= FIELD_STUDENT if path.stem.startswith("07_") else STUDENT
        (target / path.name).write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    return target


# ---------------------------------------------------------------------------------------------------- what must be there

SHIFTS = ("imagenet", "imagenet-a", "imagenet-v2", "imagenet-r", "imagenet-sketch")
RULES = ("final", "minimum loss", "any")


class Tables:
    """The tables of a results folder, and what is missing in them."""

    def __init__(self, folder: Path, profile: Path) -> None:
        self.folder, self.profile = folder, profile
        self.missing: list[str] = []
        self.cells = 0

    def values(self, notebook: str) -> dict[str, Any]:
        """The parameters that the notebook ran with."""
        common, own = (
            yaml.safe_load((self.profile / f"{name}.yaml").read_text(encoding="utf-8")) for name in ("common", notebook)
        )
        return {**common, **own}

    def read(self, name: str) -> pd.DataFrame:
        path = self.folder / "tables" / f"{name}.csv"
        if not path.is_file():
            self.missing.append(f"table {name}")
            return pd.DataFrame()
        return pd.read_csv(path, dtype=str, keep_default_na=False)

    def expect(
        self,
        name: str,
        columns: Sequence[str] = (),
        rows: Sequence[str] = (),
        *,
        by: str | None = None,
        filled: Sequence[str] | None = None,
        at_least: int = 1,
    ) -> pd.DataFrame:
        """A table with these columns, and these rows by the text of the column `by` (default: the first); no cell of the
        columns is empty in the rows (filled: in these rows only)."""
        table = self.read(name)
        if table.empty:
            if not self.missing or self.missing[-1] != f"table {name}":
                self.missing.append(f"rows of table {name}")
            return table
        absent = [column for column in columns if column not in table]
        self.missing += [f"{name}: column {column}" for column in absent]
        key = table[by or table.columns[0]]
        self.missing += [f"{name}: row {row}" for row in rows if row not in set(key)]
        if len(table) < at_least:
            self.missing.append(f"{name}: {at_least - len(table)} of {at_least} rows")
        for column in columns:
            if column in table:
                own = table[key.isin(rows if filled is None else filled)] if rows or filled else table
                empty = own[own[column].str.strip().isin(("", "nan", "NaN"))]
                self.missing += [f"{name}: cell {key[i]} / {column} is empty" for i in empty.index]
                self.cells += len(own) - len(empty)
        return table


def names_of(baselines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows that a profile's `baselines` make."""
    from apm import baselines as registry

    return [
        str(line.get("name", registry.REGISTRY[line["method"]].__dataclass_fields__["name"].default))
        for line in baselines
    ]


def _benchmark(t: Tables, notebook: str, table: str, columns: Sequence[str], headings: Sequence[str] = ()) -> None:
    """A table of methods x counting rules, with the teachers of `headings` beside the first."""
    found = t.expect(table, columns, at_least=6 * (1 + len(headings)))
    have = set(zip(found.get("method", []), found.get("counting rule", []), strict=True))
    for end in ("", *(f", {heading}" for heading in headings)):
        wanted = [(f"zero-shot, one prompt{end}", "final"), (f"teacher{end}", "zero-shot")]
        wanted += [(f"APM{end}", rule) for rule in RULES]
        t.missing += [f"{table}: row {method} / {rule}" for method, rule in wanted if not _has(have, method, rule)]


def _has(have: set[tuple[str, str]], method: str, rule: str) -> bool:
    return any(own == method and text.startswith(rule) for own, text in have)


def _methods(t: Tables, notebook: str, columns: Sequence[str], by_set: str, published: str | None) -> None:
    rows = names_of(t.values(notebook)["baselines"])
    number = notebook[:2]
    t.expect(f"{number}_methods", ("accuracy", "difference from teacher"), ("zero-shot", "APM", *rows))
    t.expect(f"{number}_{by_set}", columns, ("zero-shot", "APM", *rows))
    if published:
        t.expect(f"{number}_methods_published", ("published", "ours"), at_least=2)


def natural_shifts(t: Tables) -> None:
    """Table 1: three teachers, one prompt, ensemble and APM, five sets and two averages; other methods; published beside."""
    values = t.values("01_natural_shifts")
    further = [line["name"] for line in values["further_teachers"]]
    _benchmark(t, "01_natural_shifts", "01_natural_shifts", (*SHIFTS, "Average", "OOD Average"), further)
    _methods(t, "01_natural_shifts", SHIFTS, "methods_by_set", "Average")
    beside = t.expect("01_beside_published", list(values["counterparts"].values()), at_least=10)
    ours = beside[beside["source"] == "ours"] if len(beside) else beside
    for row in ("teacher", "final", "any"):
        if len(ours) and not len(ours[ours["row"] == row]):
            t.missing.append(f"01_beside_published: row {row}")
    t.expect("01_paired", ("final - reference",), SHIFTS)
    t.expect("01_steps", ("final - reference",), at_least=6)
    t.expect("01_sets", ("images", "classes"), SHIFTS)


def corruptions(t: Tables) -> None:
    """Table 2: fifteen corruptions and their mean; Tables 11 to 14: every severity; Table 10 beside."""
    words = [name.replace("_", " ") for name in CORRUPTIONS]
    found = t.read("02_corruptions")
    columns = [c for c in found if any(word in c.replace("_", " ") for word in words)]
    if len(columns) != len(CORRUPTIONS):
        t.missing.append(f"02_corruptions: {len(CORRUPTIONS)} corruptions, found {len(columns)} columns")
    _benchmark(t, "02_corruptions", "02_corruptions", [*columns, "Mean"])
    _methods(t, "02_corruptions", columns, "methods_by_corruption", None)
    t.expect("02_beside_published", ("mean", *CORRUPTIONS), at_least=8, filled=())
    severities = t.expect("02_severities", ("final", "teacher"), at_least=1 + 5 * len(CORRUPTIONS))
    pairs = set(zip(severities.get("corruption", []), severities.get("severity", []), strict=True))
    t.missing += [f"02_severities: {c} {s}" for c in CORRUPTIONS for s in range(1, 6) if (c, str(s)) not in pairs]
    t.expect("02_table10", ("mean accuracy",), at_least=6)
    t.expect("02_paired", at_least=len(CORRUPTIONS))


def cross_dataset(t: Tables) -> None:
    """Table 3: nine sets and their average."""
    nine = check_data.CROSS_DATASET
    _benchmark(t, "03_cross_dataset", "03_cross_dataset", (*nine, "Average"))
    _methods(t, "03_cross_dataset", nine, "methods_by_set", "Average")
    t.expect("03_naming", ("teacher (zero-shot)", "probe of image features (uses labels)"), nine)
    t.expect("03_paired", ("final - reference",), nine)
    t.expect("03_published", at_least=6)
    t.expect("03_sets", ("images", "classes"), nine)


def compute(t: Tables) -> None:
    """Table 4 and the counts behind Figure 2."""
    values = t.values("04_compute")
    costs = t.expect("04_ttt_cost", ("counted", "total (GMAC)", "total (GFLOP)"), at_least=8)
    for teacher in values["teachers"]:
        if len(costs) and not costs["counted"].str.startswith(f"{teacher} image once").any():
            t.missing.append(f"04_ttt_cost: rows of {teacher}")
    t.expect("04_conventions", ("network", "counted"), (*values["students"], *values["towers"]))
    t.expect("04_memory", ("what", "detail"), at_least=len(values["chunks"]))


def ablations(t: Tables) -> None:
    """Tables 5a, 5b, 8 and 9: every line of the profile."""
    values = t.values("05_ablations")
    lines = yaml.safe_load((t.profile / values["lines"]).read_text(encoding="utf-8"))
    variants = [line["name"] for line in lines]
    t.expect("05_ablations", ("final", "final - teacher"), variants, by="variant")
    table = t.expect("05_ablations", ("published",), variants, by="variant", filled=[v["name"] for v in lines if "published" in v])  # fmt: skip
    parts = {line["part"] for line in lines}
    if len(table) and not parts <= set(table[table.columns[0]]):
        t.missing.append(f"05_ablations: parts {sorted(parts - set(table[table.columns[0]]))}")
    t.expect("05_iterations", ("final", "sd"), [str(k) for k in values["iterations"]])


def islands(t: Tables) -> None:
    """Figures 3, 5 and 7, with their numbers."""
    values = t.values("06_islands")
    t.expect("06_loss", rows=list(values["loss_runs"]))
    t.expect("06_photographs", rows=values["photographs"])
    variants = [f"{name}, k = {values['measured_after']}" for name in ("student", *values["variants"])]
    t.expect("06_islands", rows=[*variants, "positional code alone", "teacher's patch tokens"])
    t.expect("06_measures", ("value", "low", "high"), variants)
    t.expect("06_alike", ("CKA",), at_least=8)


def field(t: Tables) -> None:
    """Figures 4 to 6 and App. F, with their numbers."""
    values = t.values("07_field")
    t.expect("07_field", at_least=4)
    t.expect("07_colour", at_least=2 + len(values["kernels"]))
    t.expect("07_features", ("5-NN",), ("field: teacher + RGB, folded", "teacher: image feature", "raw pixels"))
    t.expect("07_clusters", ("images: NMI with class",), ("field: teacher + RGB", "teacher", "raw pixels"))
    t.expect("07_crossing", at_least=2)


def audit(t: Tables) -> None:
    """Every claim is tested: no table that a claim needs is missing."""
    claims = t.expect("08_claims", ("claim", "figure", "verdict"), at_least=15)
    if len(claims):
        t.missing += [f"08_claims: {row.claim}: {row.figure}" for row in claims.itertuples() if "no 0" in row.figure]
    for name in ("08_text", "08_published_means", "08_published_sums", "08_published_teachers", "08_start"):
        t.expect(name)


def report(t: Tables) -> None:
    """The page holds every table that the notebooks left."""
    page = t.folder / "report.html"
    if not page.is_file():
        t.missing.append("report.html")
        return
    text = page.read_text(encoding="utf-8")
    for path in sorted((t.folder / "tables").glob("*.md")):
        caption = path.read_text(encoding="utf-8").splitlines()[0].strip("* ")
        if caption.split(":")[0].split("&")[0].strip(".")[:40] not in text:
            t.missing.append(f"report.html: table {path.stem}")


CHECKS: dict[str, Callable[[Tables], None]] = {
    "01_natural_shifts": natural_shifts,
    "02_corruptions": corruptions,
    "03_cross_dataset": cross_dataset,
    "04_compute": compute,
    "05_ablations": ablations,
    "06_islands": islands,
    "07_field": field,
    "08_claims_audit": audit,
    "99_report": report,
}


def complaints(executed: Path) -> list[str]:
    """What the cells of an executed notebook wrote to their standard error."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    said = ["".join(o["text"]) for o in outputs if o.get("name") == "stderr"]
    return [f"standard error: {' '.join(text.split())[:300]}" for text in said]


# ------------------------------------------------------------------------------------------------------------------ run


def prepare(folder: Path) -> Path:
    """Trees, teachers and scratch profile below `folder`; returns the profile's folder."""
    import trees

    if not (folder / "data").is_dir():
        trees.write(folder / "data")
    return write_profile(folder / "profiles", make_teachers(folder / "teachers"))


def environment(folder: Path) -> dict[str, str]:
    """Everything that a run reads or writes is below `folder`; nothing reaches the network."""
    return {
        **os.environ,
        "APM_PROFILES": str(folder / "profiles"),
        "APM_RESULTS": str(folder / "results"),
        "APM_CACHE": str(folder / "cache"),
        "APM_ROOT": str(ROOT),
        "PYTHONPATH": str(ROOT),
        "DATA": str(folder / "data"),
        "PARTIAL": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
    }


def rehearse(folder: Path, only: Sequence[str] = ()) -> int:
    """Run and check the notebooks, one line each; returns how many things are missing."""
    start = time.monotonic()
    profile = prepare(folder)
    print(f"trees, teachers and profile in {folder}: {time.monotonic() - start:.0f} s", flush=True)
    lines, missing = [], 0
    if check_data.report(*check_data.PROFILES[PROFILE], folder / "data", partial=True):
        missing += 1
    for notebook in profiles.runs(PROFILE):
        if only and notebook not in only:
            continue
        began = time.monotonic()
        command = [sys.executable, "-m", "apm.run", "--profile", PROFILE, notebook]
        done = subprocess.run(command, cwd=ROOT, env=environment(folder), capture_output=True, text=True, check=False)
        tables = Tables(folder / "results" / PROFILE, profile)
        if done.returncode:
            tables.missing.append(f"it failed:\n{done.stderr.strip()}")
        else:
            tables.missing += complaints(tables.folder / "notebooks" / f"{notebook}.ipynb")
            CHECKS.get(notebook, lambda t: None)(tables)
        seconds = time.monotonic() - began
        made = len(list((tables.folder / "tables").glob(f"{notebook[:2]}_*.csv")))
        figures = len(list((tables.folder / "figures").glob(f"{notebook[:2]}_*.png")))
        state = "complete" if not tables.missing else f"{len(tables.missing)} missing"
        lines.append(f"{notebook:20} {state:12} {made:3} tables {tables.cells:5} cells checked {figures:3} figures {seconds:5.0f} s")  # fmt: skip
        print(lines[-1], flush=True)
        for text in tables.missing:
            print(f"    {text}", flush=True)
        missing += len(tables.missing)
    print(f"\n{'complete' if not missing else f'{missing} missing'} in {time.monotonic() - start:.0f} s")
    return missing


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 0, or 1 where anything is missing."""
    parser = argparse.ArgumentParser(description="Run profile paper on tiny data and look whether every table is there.")
    parser.add_argument("--folder", type=Path, help="where to work, kept afterwards (default: a temporary folder)")
    parser.add_argument("--only", nargs="+", default=(), metavar="NOTEBOOK", help="these notebooks, such as 05_ablations")
    options = parser.parse_args(arguments)
    for name in options.only:
        if name not in profiles.runs(PROFILE):
            parser.error(f"profile {PROFILE} has no notebook {name!r}. Known: {', '.join(profiles.runs(PROFILE))}")
    if options.folder:
        return int(bool(rehearse(options.folder.resolve(), options.only)))
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        return int(bool(rehearse(Path(folder), options.only)))


if __name__ == "__main__":
    sys.exit(main())
