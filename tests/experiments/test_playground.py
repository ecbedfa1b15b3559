"""The panel of notebook 10 without a browser: what it shows is what `adapt` does, and what cannot be meant is said in a sentence."""

import asyncio
import io
import struct
import threading
import zlib

import numpy as np
import pytest
import yaml
from PIL import Image

from apm import methods, ttt
from apm.experiments import ablations, playground
from apm.experiments.live import Learner, draw, read_upload
from apm.experiments.playground import Panel

SOURCES = [
    {"dataset": "digits-test", "teacher": "mini", "student": {"preset": "mini"}},
    {"dataset": "digits-thick", "teacher": "mini", "student": {"preset": "mini", "grid": [4, 4], "patch": 8}},
]


def png(width: int, height: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG", **options)
    return buffer.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG file whose header promises a picture of any size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + png(40, 40)[33:]
    )


@pytest.fixture(scope="module")
def first() -> Panel:
    return Panel(SOURCES, training={"iterations": 20}, right={"fold": "attention", "kernels": 3})


@pytest.fixture
def panel(first: Panel) -> Panel:
    """As it was made."""
    first.set("image", dataset="digits-test", position=0, corruption="none", severity=3)
    for side, fold, kernels in (("left", "mean", 1), ("right", "attention", 3)):
        first.set(side, grid=8, kernels=kernels, fold=fold, iterations=20, learning_rate=2e-3, precision="float32")
    first.own = None
    return first


def test_what_is_seen_is_what_test_time_training_does(panel: Panel) -> None:
    panel.set("image", corruption="gaussian_noise", severity=5, position=3)
    asyncio.run(panel.run())
    data, teacher, _ = panel.source
    for side in playground.SIDES:
        config = methods.training_config(teacher, *panel.chosen(side))
        one, pixels = panel.learners[side], methods.student_pictures(teacher, [panel.image()], 32)
        target = teacher.encode(teacher.transform([panel.image()])).feature
        text = teacher.text_features(data.classnames, data.templates)
        alone = ttt.adapt(pixels, target, config, text_features=text)
        assert [look.k for look in one.looks] == list(range(21))
        np.testing.assert_allclose([look.loss for look in one.looks], alone.losses[0], rtol=1e-5)
        np.testing.assert_allclose(one.looks[-1].scores, alone.scores[0, -1], atol=1e-5)
        assert panel.table().loc[side, "says"] == data.classnames[alone.predictions()[0, -1]]
        assert f"{side}: 20 of 20 updates" in panel.said.value
    assert list(panel.learners["left"].grids) == [0, 2, 20]


def test_the_kernel_answers_while_it_trains_and_a_run_can_be_stopped(panel: Panel) -> None:
    async def watched() -> int:
        panel.set("left", iterations=playground.MOST)
        before, task, answers = panel.picture.value, asyncio.create_task(panel.run()), 0
        while panel.learners["left"].config.iterations < playground.MOST or panel.picture.value == before:
            await asyncio.sleep(0.01)
            answers += 1
        while not panel.learners["left"].updates:
            await asyncio.sleep(0.01)
        assert panel.start.disabled
        await panel.run()
        assert "a run is at work" in panel.said.value
        panel.stop()
        await task
        return answers

    assert asyncio.run(asyncio.wait_for(watched(), 120)) > 0
    assert 0 < panel.learners["left"].updates < playground.MOST
    assert not panel.learners["right"].looks
    assert panel.said.value.startswith("stopped; left: ")
    assert (panel.start.disabled, panel.end.disabled) == (False, True)
    assert list(panel.table().index) == ["left"]
    assert len(draw(panel.learners).axes) == 14  # a student of which nothing was seen leaves its place empty


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("middle", {}, "unknown part 'middle'. Known: image, left, right"),
        ("left", {"kernel": 3}, "unknown control of left 'kernel'.*Did you mean 'kernels'"),
        ("left", {"kernels": 99}, "unknown kernels 99. Known: 1, 2, 3"),
        ("left", {"grid": 3}, "unknown grid 3. Known: 2, 4, 8"),
        ("left", {"precision": "tf32"}, "unknown precision 'tf32'. Known: float32, bfloat16, float64"),
        ("right", {"iterations": 0}, "iterations: expected a whole number from 1 to 5000, found 0"),
        ("right", {"iterations": 2.5}, "iterations: expected a whole number"),
        ("image", {"position": 899}, "position: expected a whole number from 0 to 898, found 899"),
        ("image", {"corruption": "fogg"}, "unknown corruption 'fogg'.*Did you mean 'fog'"),
        ("image", {"severity": 6}, "unknown severity 6. Known: 1, 2, 3, 4, 5"),
        ("image", {"dataset": "digits"}, "unknown dataset 'digits'. Known: digits-test"),
    ],
)
def test_a_value_that_no_control_has_is_refused(panel: Panel, part: str, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        panel.set(part, **values)


def test_a_source_names_its_images_and_their_teacher() -> None:
    with pytest.raises(ValueError, match=r"a source is dataset, teacher and, at will, .*; found \{'dataset': 'x'\}"):
        Panel([{"dataset": "x"}])


def test_another_set_brings_its_own_images_and_grids(panel: Panel) -> None:
    panel.set("image", position=898)
    panel.set("image", dataset="digits-thick")
    data, _, _ = panel.source
    assert panel.controls["image"]["position"].max == len(data) - 1
    assert panel.chosen("left")[0] == {"preset": "mini", "grid": [4, 4], "patch": 8, "kernels": 1, "fold": "mean"}


def test_a_setting_is_exported_as_a_line_of_the_ablations(panel: Panel) -> None:
    panel.set("right", precision="bfloat16", grid=4)
    panel._exported()
    left, right = ablations.parse(yaml.safe_load(panel.lines.value))
    _, teacher, _ = panel.source
    config = ablations.method(right, teacher, {"preset": "mini"}, {}).config
    assert config == methods.training_config(teacher, *panel.chosen("right"))
    assert (config.student.grid, config.student.patch, config.precision) == ((4, 4), 8, "bfloat16")
    assert left.name != right.name
    assert yaml.safe_load(panel.line("left", "mine"))[0]["name"] == "mine"
    with pytest.raises(ValueError, match="unknown side 'image'"):
        panel.line("image")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not an image", "x.png is no image that can be read here: choose a PNG or JPEG file"),
        (b"", "x.png is no image that can be read here"),
        (png(40, 40)[:-30], "x.png is damaged"),
        (png(40, 20), "x.png has 40 x 20 px: expected at least 32 each way"),
        (claims(9000, 9000), "x.png has more than 40,000,000 pixels: make it smaller"),
        (claims(60000, 60000), "x.png has more than 40,000,000 pixels: make it smaller"),
    ],
)
def test_a_file_that_is_no_image_of_a_usual_size_is_said_in_a_sentence(
    panel: Panel, content: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_upload("x.png", content)
    panel._uploaded({"new": ({"name": "x.png", "content": memoryview(content)},)})
    assert message in panel.said.value
    assert panel.own is None


def test_a_file_of_ones_own_is_trained_on_until_another_image_is_chosen(panel: Panel) -> None:
    assert read_upload("x.png", png(900, 450)).shape == (224, 448, 3)
    panel._uploaded({"new": ({"name": "<b>.png", "content": memoryview(png(50, 40))},)})
    assert panel.said.value.startswith("&lt;b&gt;.png: press run")
    panel.set("image", corruption="fog")
    asyncio.run(panel.run())
    assert panel.image().shape == (40, 50, 3)
    panel.set("image", position=5)
    assert panel.image().shape == (32, 32, 3)


def test_a_training_that_fails_is_said_and_two_panels_do_not_disturb_each_other(panel: Panel) -> None:
    data, teacher, _ = panel.source
    wild = methods.training_config(teacher, {}, {"iterations": 30, "learning_rate": 1e12})
    with pytest.raises(ValueError, match=r"not finite after .* a lower learning rate may do"):
        Learner(teacher, data, panel.image(), wild).train(threading.Event())
    other = Panel(SOURCES[:1], training={"iterations": 20}, right={"fold": "attention", "kernels": 3})

    async def both() -> None:
        await asyncio.gather(panel.run(), other.run())

    asyncio.run(both())
    assert panel.table().equals(other.table())


@pytest.mark.parametrize("executed", [False, True])
def test_an_executed_copy_holds_a_picture_in_place_of_the_controls(panel: Panel, executed: bool, monkeypatch) -> None:
    shown: list = []
    monkeypatch.setattr(playground, "display", shown.append)
    monkeypatch.setenv("APM_RUN", "1" * executed)
    panel.show()
    assert isinstance(shown[0], playground.Picture) == executed
    assert shown[0] is panel.box or shown[0].data == panel.picture.value
