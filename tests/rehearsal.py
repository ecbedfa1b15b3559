"""A dress rehearsal of profile `paper` without its data and weights: `python tests/rehearsal.py`, or `make rehearse`.

Small trees in the true layouts take the place of the benchmarks, small open_clip models with random weights in checkpoints of the
true format that of the teachers. Of the profile only what says how large, how long and where is overridden; datasets, rows,
methods, prompts and the notebooks are its own. Every notebook runs; then every table and every row that the profile promises
must be there. The numbers mean nothing: all teachers are random.

    --folder DIR   work there and keep it (default: a temporary folder, removed at the end)
    --only NAME    these notebooks only (the check of tables is then left out)
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

PROFILE = "paper"
STUDENT = {"preset": "mini", "fold": "mean"}
SMALL = {"grid": [4, 4], "patch": 14, "hidden": [32, 16]}
TEACHERS = {  # in the profile -> width of the small one
    "ViT-B-16-quickgelu": 64,
    "ViT-L-14-quickgelu": 48,
    "ViT-H-14-quickgelu": 32,
    "ViT-H-14-378-quickgelu": 16,
}
ITERATIONS = 4
VIEWS = 10
# what is smaller, per notebook; student, teacher, device and the lines of 05 are dealt with below
OVERRIDES: dict[str, dict[str, Any]] = {
    "00_quickstart": {"photo_student": SMALL, "training": {"iterations": 60}},
    "01_natural_shifts": {},
    "02_corruptions": {"samples": 10, "curve_samples": 10, "table10": {"samples": 10}},
    "03_cross_dataset": {},
    "04_compute": {
        "timed_towers": ["ViT-B-16"],
        "repeats": 1,
        "timed_iterations": 2,
        "threads": 2,
        "chunks": [1, 512, 1024],
    },
    "05_ablations": {
        "samples": 10,
        "early": [1, 2],
        "iterations": [1, 2, 4],
        "published_size": {"samples": 2, "counts": [0, 2], "student": SMALL, "training": {"iterations": 2}},
    },
    "06_islands": {
        "photo_student": SMALL,
        "training": {"iterations": 5},
        "looks": [0, 2, 5],
        "samples": 12,
        "measured_after": 5,
        "loss_samples": 2,
        "cluster_counts": [2, 3],
    },
    "07_field": {
        "student": {"grid": [4, 4], "patch": 16, "hidden": [32, 32, 16], "rgb_hidden": [16]},
        "training": {"epochs": 2, "batch": 8},
        "plain": {"epochs": 2, "batch": 8},
        "reconstruction": {"epochs": 2, "batch": 8},
        "labelled_train_samples": 40,
        "labelled_samples": "all",
        "coloured_samples": "all",
        "clustered": 20,
        "clusters": 3,
        "neighbours": 3,
        "embedded": 12,
        "examples": 3,
        "pair": [0, 1],
        "pairs": 10,
    },
    "08_claims_audit": {"samples": 12, "orders": 2, "checked": 4, "paper_chunk": 512, "start_seeds": [0, 1]},
}


# -------------------------------------------------------------------------------------------------------- teachers, profile


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
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(values, list):
            values = [small_line(line) for line in values]
        else:
            values = small_values(values, file.stem, teachers)
        (target / file.name).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def small_values(values: dict[str, Any], notebook: str, teachers: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The values of one YAML file, smaller. Raises KeyError for an override of a value that the profile does not have."""
    values = dict(values)
    for name, value in OVERRIDES.get(notebook, {}).items():
        own = values[name]
        merged = {**own, **value} if isinstance(own, dict) and isinstance(value, dict) else value
        values[name] = merged if name != "photo_student" else value
    if "device" in values:
        values["device"] = "cpu"
    if notebook == "common":
        values["student"] = STUDENT
    elif "training" not in OVERRIDES.get(notebook, {}) and "iterations" in values.get("training", {}):
        values["training"]["iterations"] = ITERATIONS
    if notebook == "04_compute":  # names of open_clip models, counted without weights
        return values
    if "teacher" in values:
        values |= teachers["timm" if str(values["teacher"]).startswith("timm:") else values["teacher"]]
    if "further_teachers" in values:
        values["further_teachers"] = [{**line, **teachers[line["teacher"]]} for line in values["further_teachers"]]
    if "baselines" in values:
        values["baselines"] = [small_method(line) for line in values["baselines"]]
    for run in values.get("loss_runs", {}).values():
        if "iterations" in run:
            run["iterations"] = 8
    return values


def small_method(line: dict[str, Any]) -> dict[str, Any]:
    """A line of `baselines` with fewer images, views and epochs."""
    small = {**line, "samples": 10}
    if line["method"] in ("zero", "mta", "apm-views", "tent", "tpt") or "views" in line:
        small["views"] = VIEWS
    if line["method"] == "coop":
        small |= {"shots": 1, "epochs": 1}
    if "coop" in line:
        small["coop"] = {**line["coop"], "shots": 1, "epochs": 1}
    return small


def small_line(line: dict[str, Any]) -> dict[str, Any]:
    """An ablation with a smaller student, fewer images and iterations."""
    small = dict(line)
    if "samples" in line:
        small["samples"] = 10
    if line.get("network", "apm") != "apm" and "size" in line:
        small["size"] = 64
    student = dict(line.get("student", {}))
    if "hidden" in student:
        student["hidden"] = [max(2, width // 64) for width in student["hidden"]]
        small["student"] = student
    training = dict(line.get("training", {}))
    if "iterations" in training:
        training["iterations"] = ITERATIONS + 2
        small["training"] = training
    return small


def scratch_project(folder: Path) -> Path:
    """A project folder whose notebooks and code are the true ones and whose profile is the small one."""
    project = folder / "project"
    (project / "data").mkdir(parents=True, exist_ok=True)
    for name in ("apm", "notebooks", "data/published"):
        if not (project / name).exists():
            (project / name).symlink_to(ROOT / name)
    small_profile(ROOT / "profiles" / PROFILE, project / "profiles" / PROFILE, make_teachers(folder / "teachers"))
    return project


# ------------------------------------------------------------------------------------------------------ what must be there


def missing(results: Path, profile: Path) -> list[str]:
    """What the run promised and did not leave: tables, columns and rows, in words."""
    lacking = []
    tables = {path.stem for path in (results / "tables").glob("*.csv")}
    for name in sorted(path.stem for path in (ROOT / "results" / "mini" / "tables").glob("*.csv")):
        if name not in tables and name != "01_parts":  # these sets have no parts
            lacking.append(f"table {name}")

    def read(name: str) -> pd.DataFrame:
        path = results / "tables" / f"{name}.csv"
        return pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame()

    def need(table: str, what: str, wanted: list[str], there: list[str]) -> None:
        lacking.extend(f"{table}: {what} {name!r}" for name in wanted if name not in there)

    def filled(table: str, columns: list[str]) -> None:
        """No cell of these columns is empty."""
        frame = read(table)
        for column in (column for column in columns if column in frame):
            for place in frame.index[frame[column].str.strip().isin(("", "nan", "NaN"))]:
                lacking.append(f"{table}: row {' '.join(frame.iloc[place, :2])!r} has no value in {column!r}")

    values = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in profile.glob("*.yaml")}
    shifts, cross = values["01_natural_shifts"], values["03_cross_dataset"]
    rows = [("teacher", "zero-shot"), ("zero-shot, one prompt", ""), ("APM", "final"), ("APM", "minimum loss")]
    rows += [(f"{method}, {line['name']}", rule) for line in shifts["further_teachers"] for method, rule in rows]
    first = read("01_natural_shifts")
    need("01_natural_shifts", "column", [*shifts["datasets"], "Average", "OOD Average"], list(first))
    need(
        "01_natural_shifts",
        "row",
        [str(r) for r in rows],
        [str(r) for r in zip(first.get("method", []), first.get("counting rule", []), strict=True)],
    )
    from apm.data import corruptions

    second = read("02_corruptions")
    need(
        "02_corruptions",
        "column",
        [f"{kind.replace('_', ' ')} 5" for kind in corruptions.NAMES] + ["Mean"],
        list(second),
    )
    filled("01_natural_shifts", [*shifts["datasets"], "Average", "OOD Average"])
    filled("02_corruptions", list(second)[2:])
    filled("03_cross_dataset", [*cross["datasets"], "Average"])
    need(
        "02_table10", "source", ["published, CIFAR-10-C", "ours, cifar10-c"], list(read("02_table10").get("source", []))
    )
    levels = read("02_severities")
    if len(levels) != 15 * 5 + 1:
        lacking.append(f"02_severities: expected 76 conditions, found {len(levels)}")
    third = read("03_cross_dataset")
    need("03_cross_dataset", "column", [*cross["datasets"], "Average"], list(third))
    for table in ("01_beside_published", "03_beside_published"):
        need(table, "source", ["published", "ours"], list(read(table).get("source", [])))
    for notebook in ("01_natural_shifts", "02_corruptions", "03_cross_dataset"):
        lines = values[notebook].get("baselines", values["common"]["baselines"])
        names = {
            "zero": "ZERO",
            "mta": "MTA",
            "apm-views": "APM, views",
            "tda": "TDA",
            "tent": "TENT",
            "tpt": "TPT",
            "coop": "CoOp",
        }
        wanted = [
            "zero-shot",
            "zero-shot, one prompt",
            "APM",
            *(line.get("name", names[line["method"]]) for line in lines),
        ]
        for end in ("", f"_by_{'corruption' if notebook.startswith('02') else 'set'}"):
            table = f"{notebook[:2]}_methods{end}"
            need(table, "method", wanted, list(read(table).get("method", [])))
    variants = [line["name"] for line in values["05_ablations.lines"]]
    need("05_ablations", "variant", variants, list(read("05_ablations").get("variant", [])))
    claims = pd.read_csv(ROOT / "results" / "mini" / "tables" / "08_claims.csv", dtype=str)
    need("08_claims", "claim", list(claims["claim"]), list(read("08_claims").get("claim", [])))
    if not (results / "report.html").is_file():
        lacking.append("report.html")
    return lacking


def complaints(executed: Path) -> list[str]:
    """What the cells of an executed notebook wrote to their standard error."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    said = ["".join(output["text"]) for output in outputs if output.get("name") == "stderr"]
    return [f"{executed.stem} wrote to its standard error: {' '.join(text.split())[:300]}" for text in said]


def main() -> int:
    """Command line; exit status 1 when a notebook fails or something is missing."""
    parser = argparse.ArgumentParser(description="Rehearse profile paper on small trees with random teachers.")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as temporary:
        return rehearse((options.folder or Path(temporary)).resolve(), options.only)


def rehearse(folder: Path, only: list[str]) -> int:
    """Build, run, check. Returns the exit status."""
    start = time.monotonic()
    data = folder / "data"
    if not data.is_dir():
        trees.everything(data)
    project = scratch_project(folder)
    environment = {**os.environ, "APM_ROOT": str(project), "DATA": str(data), "PARTIAL": "1", "HF_HUB_OFFLINE": "1"}
    for name in ("APM_RESULTS", "APM_CACHE"):
        environment.pop(name, None)
    print(f"trees and teachers in {folder}: {time.monotonic() - start:.0f} s", flush=True)
    check = [sys.executable, "-m", "apm.data.check", "--profile", PROFILE, "--data", str(data), "--partial"]
    failed = [] if subprocess.run(check, env=environment, cwd=project, check=False).returncode == 0 else ["check-data"]
    listed = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    for name in only or listed:
        run = [sys.executable, "-m", "apm.project.run", "--profile", PROFILE, name]
        if subprocess.run(run, env=environment, cwd=project, check=False).returncode:
            failed.append(name)
        else:
            failed += complaints(project / "results" / PROFILE / "notebooks" / f"{name}.ipynb")
    lacking = [] if only else missing(project / "results" / PROFILE, project / "profiles" / PROFILE)
    for what in failed:
        print(f"FAILED   {what}")
    for what in lacking:
        print(f"MISSING  {what}")
    if not failed and not lacking and not only:
        count = len(list((project / "results" / PROFILE / "tables").glob("*.csv")))
        print(
            f"all {len(listed)} notebooks ran; {count} tables with every promised row; {time.monotonic() - start:.0f} s"
        )
    return 1 if failed or lacking else 0


if __name__ == "__main__":
    sys.exit(main())
