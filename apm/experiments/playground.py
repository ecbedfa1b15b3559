"""One image, live: two settings of a student side by side while they learn, in a panel of notebook 10 or any other.

    panel = Panel([{"dataset": "digits-test", "teacher": "mini", "student": {"preset": "mini"}}])
    panel.show()                                # controls, run, stop; in an executed copy the first state as a picture
    panel.set("right", fold="attention")        # what the controls do
    await panel.run()
    panel.table(), print(panel.line("right"))   # what was seen; the setting as a line of the ablations

A thread trains and the kernel's own loop draws, so that the kernel answers meanwhile. Labels are not read. Nothing is written.
"""

from __future__ import annotations

import asyncio
import functools
import html
import io
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from IPython.display import Image as Picture
from IPython.display import display

from apm import data as datasets
from apm import methods, project, teachers, ttt
from apm.data import Dataset, corruptions
from apm.experiments import ablations, session
from apm.experiments.live import Learner, draw, read_upload
from apm.project.paths import by_hand
from apm.teachers import Teacher

SIDES = ("left", "right")
PAUSE = 0.2  # seconds between pictures
GRIDS, KERNELS, FOLDS = (2, 4, 8, 14, 16, 28, 32), (1, 2, 3, 5, 8), ("mean", "attention")
RATES = (1e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
MOST = 5000  # updates
LABELS = {"iterations": "K", "learning_rate": "rate"}


class Panel:
    """The controls and what they show. sources: images with their teachers, {dataset, teacher, pretrained, student} each; the first is chosen.

    training: both sides' iterations, learning_rate and precision; parts (image, left, right): what their controls begin with. Both sides
    are trained once. precision: the teacher's. Raises ValueError as `set`, and as sets and teachers do.
    """

    def __init__(
        self,
        sources: Sequence[Mapping[str, Any]],
        *,
        training: Mapping[str, Any] | None = None,
        device: str = "cpu",
        precision: str = "fp32",
        **parts: Mapping[str, Any],
    ) -> None:
        for source in sources:
            if not {"dataset", "teacher"} <= source.keys() <= {"dataset", "teacher", "pretrained", "student"}:
                raise ValueError(
                    f"a source is dataset, teacher and, at will, pretrained, student; found {dict(source)}"
                )
        self.sources, self.how = {str(s["dataset"]): s for s in sources}, {"device": device, "precision": precision}
        self.load = functools.cache(self._load)
        self.learners: dict[str, Learner] = {}
        self.own: np.ndarray | None = None  # the image of a file, until another one is chosen
        self.halt = threading.Event()
        self.controls = {"image": _image_controls([*self.sources]), **{side: _controls(device) for side in SIDES}}
        self.upload = widgets.FileUpload(
            accept="image/*", description="a file of your own, up to 7 MB", layout={"width": "230px"}
        )
        self.start = widgets.Button(description="run", button_style="primary", icon="play")
        self.end = widgets.Button(description="stop", icon="stop", disabled=True)
        self.export = widgets.Button(description="as ablation lines", icon="clipboard")
        self.picture, self.said = widgets.Image(format="png", layout={"width": "100%"}), widgets.HTML()
        self.lines = widgets.Textarea(layout={"width": "98%", "height": "70px", "display": "none"})
        names = [widgets.HTML(f"<b>{part}</b>", layout={"width": "48px"}) for part in self.controls]
        rows = [[name, *row.values()] for name, row in zip(names, self.controls.values(), strict=True)]
        rows = [[*rows[0], self.upload], *rows[1:], [self.start, self.end, self.export, self.said]]
        every = [widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        self.box = widgets.VBox([*every, self.picture, self.lines])
        for name, widget in {"box": self.box, "picture": self.picture, "said": self.said}.items():
            widget.add_class(f"apm-{name}")
        self._chosen()
        self.controls["image"]["dataset"].observe(lambda _: self._chosen(), "value")
        self.controls["image"]["position"].observe(lambda _: setattr(self, "own", None), "value")
        self.upload.observe(self._uploaded, "value")
        self.start.on_click(lambda _: asyncio.get_running_loop().create_task(self.run()))
        self.end.on_click(lambda _: self.stop())
        self.export.on_click(lambda _: self._exported())
        for part, values in [*((side, training or {}) for side in SIDES), *parts.items()]:
            self.set(part, **values)
        self._begin()
        for learner in self.learners.values():
            learner.train(self.halt)
        self._draw()
        self._report("press run to train anew")

    def _load(self, name: str) -> tuple[Dataset, Teacher, Mapping[str, Any]]:
        """Images, their teacher, and the student under the controls' settings."""
        given = self.sources[name]
        teacher = teachers.load(given["teacher"], pretrained=given.get("pretrained"), **self.how)
        return datasets.load(name), teacher, given.get("student") or {}

    @property
    def source(self) -> tuple[Dataset, Teacher, Mapping[str, Any]]:
        """What `_load` gives of the chosen set; loaded at its first choice."""
        return self.load(self.controls["image"]["dataset"].value)

    def _chosen(self) -> None:
        """Another set is chosen, of other positions and grids."""
        self.own = None
        data, teacher, student = self.source
        base = methods.training_config(teacher, student).student
        self.controls["image"]["position"].max = len(data) - 1
        for grid in (self.controls[side]["grid"] for side in SIDES):
            grid.options = sorted({base.grid[0], *(n for n in GRIDS if base.image_size[0] % n == 0)})
            grid.value = base.grid[0]

    def _uploaded(self, change: Mapping[str, Any]) -> None:
        for file in change["new"]:
            try:
                self.own = read_upload(file["name"], bytes(file["content"]))
                self._say(f"{file['name']}: press run. It stays until another image is chosen.")
            except ValueError as error:
                self._say(str(error))
        if change["new"]:
            self.upload.value = ()  # the same file can be given again

    def _exported(self) -> None:
        self.lines.value, self.lines.layout.display = "".join(map(self.line, SIDES)), "block"

    def _say(self, text: str) -> None:
        self.said.value = html.escape(text)

    def _report(self, state: str) -> None:
        """What both sides say at the end."""
        for side, one in self.learners.items():
            for look in one.looks[-1:]:
                state += f"; {side}: {one.updates} of {one.config.iterations} updates, says {one.says(look.scores)}"
        self._say(f"{state}; the teacher says {one.says(one.asked)}")

    def set(self, part: str, **values: Any) -> None:
        """Move controls of a part: image, left or right. Raises ValueError for a part and a control that do not exist, and for a value
        that a control does not have, with those that it has."""
        project.among("part", [part], self.controls)
        project.among(f"control of {part}", values, self.controls[part])
        for name, value in values.items():
            own = self.controls[part][name]
            if isinstance(own, widgets.Dropdown):
                project.among(name, [value], own.options)
            elif type(value) is not int or not own.min <= value <= own.max:
                raise ValueError(f"{name}: expected a whole number from {own.min} to {own.max}, found {value!r}")
            own.value = value

    def chosen(self, side: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The student and the training of a side, as fields of `APMConfig` over a preset, and of `TTTConfig`."""
        project.among("side", [side], SIDES)
        values = {name: control.value for name, control in self.controls[side].items()}
        _, teacher, base = self.source
        n, size = values.pop("grid"), methods.training_config(teacher, base).student.image_size[0]
        own = {name: values.pop(name) for name in ("kernels", "fold")}
        return {**base, "grid": [n, n], "patch": size // n, **own}, values

    def image(self) -> np.ndarray:
        """The chosen image (H, W, 3) uint8, corrupted."""
        chosen = {name: control.value for name, control in self.controls["image"].items()}
        image = np.asarray(self.source[0].images[chosen["position"]]) if self.own is None else self.own
        if chosen["corruption"] == "none":
            return image
        return corruptions.corrupt(image, chosen["corruption"], chosen["severity"], index=chosen["position"])

    def _begin(self) -> None:
        data, teacher, _ = self.source
        image, configs = self.image(), [methods.training_config(teacher, *self.chosen(side)) for side in SIDES]
        self.learners = {side: Learner(teacher, data, image, one) for side, one in zip(SIDES, configs, strict=True)}

    def _draw(self) -> None:
        buffer = io.BytesIO()
        draw(self.learners).savefig(buffer, format="png", dpi=96, metadata={"Software": None})
        self.picture.value = buffer.getvalue()

    async def run(self) -> None:
        """Train both sides anew, one after the other, and draw them meanwhile. What cannot be trained is said in the panel."""
        if self.start.disabled:
            return self._say("a run is at work: stop it, or wait for its end")
        self.start.disabled, self.end.disabled = True, False
        self.halt.clear()
        try:
            self._begin()
            self._say("training ...")
            for learner in self.learners.values():
                work = asyncio.get_running_loop().run_in_executor(None, learner.train, self.halt)
                while not work.done():
                    await asyncio.wait([work], timeout=PAUSE)
                    self._draw()
                await work
            self._report("stopped" if self.halt.is_set() else "done")
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: of torch, such as memory
            self._say(str(error))
        finally:
            self.start.disabled, self.end.disabled = False, True

    def stop(self) -> None:
        """End a run after the update at which it is; what was seen stays."""
        self.halt.set()

    def table(self) -> pd.DataFrame:
        """A row a side: what was seen last."""
        rows = {side: one.row() for side, one in self.learners.items() if one.looks}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("side")

    def line(self, side: str, name: str | None = None) -> str:
        """A side's setting as a line of profiles/PROFILE/05_ablations.lines.yaml, where it meets that profile's images and seeds."""
        student, training = self.chosen(side)
        said = ", ".join(f"{control.description} {control.value}" for control in self.controls[side].values())
        return session.text_of(ablations.Ablation(session.PART, name or said, student, training))

    def show(self) -> None:
        """The panel in a notebook that is run by hand; its picture where `apm.project.run` executes it."""
        display(self.box if by_hand() else Picture(self.picture.value, alt="two students of one image"))


def _image_controls(names: Sequence[str]) -> dict[str, Any]:
    return _laid(
        dataset=widgets.Dropdown(options=names),
        position=widgets.BoundedIntText(max=0),
        corruption=widgets.Dropdown(options=["none", *corruptions.NAMES]),
        severity=widgets.Dropdown(options=corruptions.SEVERITIES, value=3),
    )


def _controls(device: str) -> dict[str, Any]:
    """Of one side's setting."""
    kinds = [kind for kind in ttt.KNOWN["precision"] if kind != "tf32" or device.startswith("cuda")]
    return _laid(
        grid=widgets.Dropdown(options=GRIDS),
        kernels=widgets.Dropdown(options=KERNELS),
        fold=widgets.Dropdown(options=FOLDS),
        iterations=widgets.BoundedIntText(50, min=1, max=MOST),
        learning_rate=widgets.Dropdown(options=RATES, value=2e-3),
        precision=widgets.Dropdown(options=kinds),
    )


def _laid(**controls: Any) -> dict[str, Any]:
    for name, control in controls.items():
        control.description, control.style = LABELS.get(name, name), {"description_width": "initial"}
        control.layout = {"width": "210px" if name in ("dataset", "corruption") else "145px"}
    return controls
