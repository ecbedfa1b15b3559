"""A dress rehearsal of profiles `paper` and `clip` without their data and weights: `python tests/rehearsal.py`, or `make rehearse`.

Small trees in the true layouts take the place of the benchmarks, small open_clip models with random weights in checkpoints of the
true format that of the teachers. Of the profile only what says how large, how long and where is overridden; datasets, rows,
methods, prompts and the notebooks are its own. Every notebook runs; then every table and every row that the profile promises
must be there. The numbers mean nothing: all teachers are random.

    clip           this profile alone
    --folder DIR   work there and keep it (default: a temporary folder, removed at the end)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))

import trees  # noqa: E402

PROFILES = ("paper", "clip")
STUDENT = {"preset": "mini", "fold": "mean"}
# in the profile -> width of the small one
TEACHERS = {"ViT-B-16-quickgelu": 64, "ViT-L-14-quickgelu": 48, "ViT-H-14-quickgelu": 32, "ViT-H-14-378-quickgelu": 16}
TEACHERS["ViT-B-32-quickgelu"] = 64
# torchvision reads Flowers102 only with its published checksums
IN_PLACE_OF = {"flowers102-official": "flowers102"}
ITERATIONS = 4
VIEWS = 10
# tables of mini alone: sets with parts, how rate and K were chosen, words of a teacher's captions, runs in two number types
OF_MINI = {
    "01_parts",
    "01_setting",
    "03_words",
    "06_precision",
    "02_photographs",
    "02_photographs_methods",
    "02_photographs_paired",
    "02_photographs_tent",
}
OVERRIDES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))  # per profile and notebook


def make_teachers(folder: Path) -> dict[str, dict[str, str]]:
    """Random weights in true checkpoints: name in the profile -> teacher and pretrained to put in its place."""
    import open_clip
    import timm
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    own = json.loads((ROOT / "apm" / "teachers" / "model_configs" / "apm-mini.json").read_text(encoding="utf-8"))
    own["vision_cfg"].pop("patch_dropout", None)
    # 80 prompts of 1000 classes: a text tower as small as can be
    own["text_cfg"] |= {"context_length": 40, "width": 16, "heads": 1, "layers": 1}
    made = {}
    for seed, (name, width) in enumerate(TEACHERS.items()):
        config = folder / f"rehearsal-{name}.json"
        config.write_text(json.dumps({**own, "embed_dim": width, "quick_gelu": True}), encoding="utf-8")
        open_clip.add_model_config(config)
        torch.manual_seed(seed)
        weights = folder / f"{name}.safetensors"
        save_file(open_clip.create_model(config.stem).state_dict(), str(weights))
        made[name] = {"teacher": str(config), "pretrained": str(weights)}
    torch.manual_seed(9)
    weights = folder / "dinov2.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), str(weights))
    made["timm"] = {"teacher": "timm:test_vit@64", "pretrained": str(weights)}
    return made


def small_profile(source: Path, target: Path, teachers: Mapping[str, Mapping[str, str]]) -> None:
    """The profile's own files with sizes, teachers and device overridden."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.glob("*.yaml")):
        own = yaml.safe_load(file.read_text(encoding="utf-8"))
        overrides = OVERRIDES[source.name].get(file.stem, {})
        small = [*map(small_line, own)] if isinstance(own, list) else small_values(own, file.stem, overrides, teachers)
        (target / file.name).write_text(yaml.safe_dump(small, sort_keys=False, allow_unicode=True), encoding="utf-8")


def small_values(
    values: dict[str, Any], notebook: str, overrides: Mapping[str, Any], teachers: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """The values of one YAML file, smaller. Raises KeyError for an override of a value that the profile does not have."""
    values = dict(values)
    for name, value in overrides.items():
        own = values[name]
        both = isinstance(own, dict) and isinstance(value, dict)
        values[name] = {**own, **value} if both else value
    if "device" in values:
        values["device"] = "cpu"
    if notebook == "common":
        values["student"] = STUDENT
    if "training" not in overrides and "iterations" in values.get("training", {}):
        values["training"]["iterations"] = ITERATIONS
    if "teacher" in values and notebook != "04_compute":  # there names of open_clip models, counted without weights
        values |= teachers["timm" if str(values["teacher"]).startswith("timm:") else values["teacher"]]
    lists = {"further_teachers": lambda line: {**line, **teachers[line["teacher"]]}, "baselines": small_method}
    values |= {name: [small(line) for line in values[name]] for name, small in lists.items() if name in values}
    for name in {"datasets", "counterparts"} & values.keys():
        own = values[name]
        named = [IN_PLACE_OF.get(one, one) for one in own]
        values[name] = named if isinstance(own, list) else dict(zip(named, own.values(), strict=True))
    for run in values.get("loss_runs", {}).values():
        run |= {"iterations": 8} if "iterations" in run else {}
    return values


def small_method(line: dict[str, Any]) -> dict[str, Any]:
    """A line of `baselines` with fewer images, views and epochs."""
    few = {"shots": 1, "epochs": 1}
    small = {**line, "samples": 10, **(few if line["method"] == "coop" else {})}
    if line["method"] in ("zero", "mta", "apm-views", "tent", "tpt") or "views" in line:
        small["views"] = VIEWS
    if "coop" in line:
        small["coop"] = line["coop"] | few
    return small


def small_line(line: dict[str, Any]) -> dict[str, Any]:
    """An ablation with a smaller student, fewer images and iterations."""
    small = dict(line)
    if "samples" in line:
        small["samples"] = 10
    if line.get("network", "apm") != "apm" and "size" in line:
        small["size"] = 64
    if "hidden" in line.get("student", {}):
        small["student"] = line["student"] | {"hidden": [max(2, width // 64) for width in line["student"]["hidden"]]}
    if "iterations" in line.get("training", {}):
        small["training"] = line["training"] | {"iterations": ITERATIONS + 2}
    return small


def scratch_project(folder: Path, profile: str) -> Path:
    """A project folder whose notebooks and code are the true ones and whose profile is the small one."""
    project = folder / "project"
    (project / "data").mkdir(parents=True, exist_ok=True)
    for name in ("apm", "notebooks", "data/published", "data/claims.yaml"):
        if not (project / name).exists():
            (project / name).symlink_to(ROOT / name)
    small_profile(ROOT / "profiles" / profile, project / "profiles" / profile, make_teachers(folder / "teachers"))
    return project


def missing(results: Path, profile: Path) -> list[str]:
    """What the run promised and did not leave: tables, columns, rows and values, in words."""
    from apm import methods
    from apm.data import corruptions

    mini = ROOT / "results" / "mini" / "tables"
    values = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in profile.glob("*.yaml")}
    tables = {
        file.stem: pd.read_csv(file, dtype=str, keep_default_na=False) for file in (results / "tables").glob("*.csv")
    }
    ran = {name[:2] for name in (*values, "99")}
    names = {f.stem for f in mini.glob("*.csv") if f.stem[:2] in ran and "_early_" not in f.stem} - OF_MINI
    curves = values["02_corruptions"]["curve_samples"]
    names -= set() if curves else {"02_by_severity"}
    names |= {f"05_early_{k}" for k in values["05_ablations"]["early"]}
    lacking = [f"table {name}" for name in sorted(names - tables.keys())]
    shifts, cross = values["01_natural_shifts"], values["03_cross_dataset"]
    columns = {
        "01_natural_shifts": [*(name.removesuffix("?") for name in shifts["datasets"]), "Average", "OOD Average"],
        "02_corruptions": [*(f"{kind.replace('_', ' ')} 5" for kind in corruptions.NAMES), "Mean"],
        "03_cross_dataset": [*cross["datasets"], "Average"],
    }
    own = ["teacher{} zero-shot", "zero-shot, one prompt{} ", "APM{} final", "APM{} minimum loss"]
    teachers = ["", *(f", {line['name']}" for line in shifts["further_teachers"])]
    rows = {
        ("01_natural_shifts", "method", "counting rule"): [row.format(one) for one in teachers for row in own],
        ("02_table10", "source"): [
            "published, CIFAR-10-C",
            f"ours, {(values['02_corruptions']['table10'] or {}).get('corruption_set', 'cifar10')}",
        ],
        **{(f"{n}_beside_published", "source"): ["published", "ours"] for n in ("01", "03")},
        ("05_ablations", "variant"): [line["name"] for line in values["05_ablations.lines"]],
        ("08_claims", "claim"): list(pd.read_csv(mini / "08_claims.csv", dtype=str)["claim"]),
    }
    for notebook in columns:
        lines = values[notebook].get("baselines", values["common"]["baselines"])
        further = [line.get("name", methods.REGISTRY[line["method"]].name) for line in lines]
        for end in ("", f"_by_{'corruption' if notebook.startswith('02') else 'set'}"):
            rows[f"{notebook[:2]}_methods{end}", "method"] = ["zero-shot", "zero-shot, one prompt", "APM", *further]
    for table, wanted in columns.items():
        frame = tables.get(table, pd.DataFrame())
        lacking += [f"{table}: column {name!r}" for name in wanted if name not in frame]
        for column in frame.columns.intersection(wanted, sort=False):
            for _, row in frame[frame[column].str.strip().isin(("", "nan", "NaN"))].iterrows():
                lacking.append(f"{table}: row {' '.join(row.iloc[:2])!r} has no value in {column!r}")
    for (table, *parts), wanted in rows.items():
        there = set(tables.get(table, pd.DataFrame(columns=parts, dtype=str))[parts].agg(" ".join, axis=1))
        lacking += [f"{table}: {parts[0]} {name!r}" for name in wanted if name not in there]
    if curves and (found := len(tables.get("02_by_severity", ()))) != 15 * 5 + 1:
        lacking.append(f"02_by_severity: expected 76 conditions, found {found}")
    return lacking + ([] if (results / "report.html").is_file() else ["report.html"])


def complaints(executed: Path) -> list[str]:
    """What the cells of an executed notebook wrote to their standard error."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    said = ["".join(output["text"]) for output in outputs if output.get("name") == "stderr"]
    return [f"{executed.stem} wrote to its standard error: {' '.join(text.split())[:300]}" for text in said]


def main() -> int:
    """Command line; exit status 1 when a notebook fails or something is missing."""
    parser = argparse.ArgumentParser(description="Rehearse profiles on small trees with random teachers.")
    parser.add_argument("profiles", nargs="*", default=PROFILES, metavar="PROFILE")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        return max(rehearse(folder / profile, profile) for profile in options.profiles)


def rehearse(folder: Path, profile: str) -> int:
    """Build, run, check. Returns the exit status."""
    start, data = time.monotonic(), folder / "data"
    if not data.is_dir():
        {"paper": trees.everything, "clip": trees.downloads}[profile](data)
    project = scratch_project(folder, profile)
    results = project / "results" / profile
    own = {"APM_ROOT": str(project), "DATA": str(data), "PARTIAL": "1", "HF_HUB_OFFLINE": "1"}
    environment = {k: v for k, v in os.environ.items() if k not in ("APM_RESULTS", "APM_CACHE")} | own
    print(f"trees and teachers in {folder}: {time.monotonic() - start:.0f} s", flush=True)

    def runs(module: str, *arguments: str) -> bool:
        command = [sys.executable, "-m", module, "--profile", profile, *arguments]
        return subprocess.run(command, env=environment, cwd=project, check=False).returncode == 0

    wrong = [] if runs("apm.data.check", "--data", str(data), "--partial") else ["check-data"]
    notebooks = sorted(path.stem for path in (ROOT / "profiles" / profile).glob("[0-9][0-9]_*[a-z].yaml"))
    notebooks = [*(name for name in notebooks if "." not in name), "99_report"]
    for name in notebooks:
        ran = runs("apm.project.run", name)
        wrong += complaints(results / "notebooks" / f"{name}.ipynb") if ran else [f"{name} failed"]
    wrong += [f"missing: {what}" for what in missing(results, project / "profiles" / profile)]
    print(*wrong or [f"{profile}: {len(notebooks)} notebooks ran"], f"{time.monotonic() - start:.0f} s", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
