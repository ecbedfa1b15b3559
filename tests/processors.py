"""What is trained and then judged: does it come out the same on another kind of processor? The table in README.

    python tests/processors.py    # some minutes

Everything is made twice with the settings of profile mini, in two processes: as this processor rounds, and with AVX2 alone. The field
is trained for a fifth of its epochs only.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from test_other_cpu import made

from apm import data as datasets
from apm import methods, teachers, ttt
from apm.experiments import field, material
from apm.project import profiles


def flat(weights: Mapping[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([value.detach().double().numpy().ravel() for value in weights.values()])


def trained() -> dict[str, np.ndarray]:
    """What each of them holds, as one array of numbers."""
    found = {}
    islands, fields = profiles.load("mini", "06_islands"), profiles.load("mini", "07_field")
    test, train = datasets.load(islands["dataset"]), datasets.load(fields["train_dataset"])
    few = test.subset(islands["samples"], seed=0)
    for digits, precision in (("float32", "fp32"), ("float64", "fp64")):
        teacher = teachers.load("mini", precision=precision)
        own = {"the teacher's image features": np.array(teachers.features(teacher, test))}
        own["the classifier's rows"] = teacher.text_features(test.classnames, test.templates).numpy()
        training = fields["training"] | {"precision": digits, "epochs": fields["training"]["epochs"] // 5}
        config = field.FieldConfig(methods.training_config(teacher, fields["student"]).student, **training)
        data = material.prepare(teacher, train, config.student)
        own["the field's targets, the teacher's tokens"] = np.array(data.tokens)
        own["the field"] = flat(field.train(data, config, seed=fields["seed"]).model.weights)
        if digits == "float32":
            (line,) = (one for one in profiles.load("mini", "02_corruptions")["baselines"] if one["method"] == "coop")
            options = {name: value for name, value in line.items() if name not in ("method", "samples")}
            coop = methods.create("coop", teacher, **options)
            own["CoOp's vectors"] = coop.vectors(test).numpy()
            own["CoOp's answers"] = coop.predict(test, np.arange(len(test)), 0).prediction
        run = methods.training_config(teacher, islands["student"], islands["training"] | {"precision": digits})
        pixels = teachers.student_images(few.images, run.student.image_size[0])
        targets = teacher.encode(teacher.transform(few.images)).feature
        students = ttt.adapt(pixels, targets, run, seed=islands["seed"], keep_parameters=True)
        own["the students of 06"] = flat(students.parameters)
        own["their last losses"] = students.losses[:, -1].double().numpy()
        found |= {f"{digits}: {name}": value for name, value in own.items()}
    return found


def main() -> None:
    code = "import sys, numpy, processors; numpy.savez(sys.argv[1], **processors.trained())"
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (dict(np.load(one / "made.npz")) for one in made(code, Path(folder)))
    for name, one in ours.items():
        gap = np.abs(one - theirs[name])
        differ = f"differ by up to {gap.max():.1e}, in {(gap > 0).mean():.0%} of them"
        print(f"{name}: {differ if gap.any() else 'equal bits'}")


if __name__ == "__main__":
    main()
