"""Costs: counter and formula give the same operations, tracked bytes are those of a case counted by hand, chunks agree."""

import contextlib
import itertools
from dataclasses import replace

import numpy as np
import plain
import pytest
import torch

from apm import lockstep, model, ttt
from apm.data import published
from apm.experiments import compute, cost_tables
from apm.experiments.compute import student_cost, tower_cost
from apm.model import preset
from apm.project import profiles

RELEASED = preset("released")
SMALL = preset("mini", rgb_head=False)
CONFIGS = {
    "released": RELEASED,
    "five_layer": preset("five_layer"),
    "mini": SMALL,
    "attention": replace(SMALL, fold="attention", kernels=2, grid=(8, 4)),
}


def student_formula(config, columns: int | None = None, *, formulation: str = "plain", part: str = "all") -> int:
    """The operations of `student_cost(...).forward`, from the sizes of the layers: a second way to the same number."""
    n, (h, w), d, last = columns or config.locations, config.grid, config.width, config.hidden[-1]
    mlp = [a * b for a, b in itertools.pairwise((config.query_width, *config.hidden))]
    mean = config.fold == "mean"
    if part == "columns":
        return 2 * n * (sum(mlp) + last * d)
    column = config.locations * 3 * config.patch**2 * config.kernels
    if formulation == "plain":  # in and out, keys and values, scores
        pooling = 0 if mean else 2 * d * d + n * (2 * d * d + 2 * d)
        return 2 * (column + n * (sum(mlp) + last * d) + pooling)
    # query, keys folded into it, values, out; scores and pooling before the head; places
    attention = 4 * d * d + 2 * config.heads * (last * d + last * n) + 2 * config.heads * (d // 2) * (h + w)
    return 2 * (column + (1 + h + w) * mlp[0] + n * sum(mlp[1:]) + (last * d if mean else attention))


@pytest.fixture(scope="module")
def said() -> dict[tuple[str, str, str], str]:
    return published.load("table4").set_index(["table", "row", "column"])["text"].to_dict()


def test_flops_counts_two_operations_per_multiply_add_and_the_backward_pass() -> None:
    a, b = torch.empty(3, 4, device="meta"), torch.empty(4, 5, device="meta", requires_grad=True)
    assert compute.flops(lambda: a @ b) == 2 * 3 * 4 * 5
    with torch.no_grad():
        assert compute.flops(lambda: (a @ b).sum().backward()) == 2 * 2 * 3 * 4 * 5  # a needs no gradient


@pytest.mark.parametrize("formulation", compute.FORMULATIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_counted_operations_of_the_student_are_those_of_the_formula(name: str, formulation: str) -> None:
    config = CONFIGS[name]
    cost = student_cost(config, formulation=formulation)
    assert cost.forward == student_formula(config, formulation=formulation)
    assert cost.parameters == model.count_parameters(replace(config, rgb_head=False))
    assert cost.columns == config.locations


def test_parts_of_the_student_by_hand() -> None:
    by_hand = 2048 * 4096 + 4096 * 2048 + 2048 * 1024 + 1024 * 768
    for columns in (1, 256, 1024):
        cost = student_cost(RELEASED, columns, part="columns")
        assert cost.forward == 2 * columns * by_hand == student_formula(RELEASED, columns, part="columns")
        assert (cost.backward, cost.gmac) == (2 * cost.forward, pytest.approx(columns * by_hand / 1e9))
        assert student_cost(RELEASED, columns).forward == student_formula(RELEASED, columns)
    cost = student_cost(SMALL)  # two products backward per product forward
    pixels = 2 * SMALL.locations * 3 * SMALL.patch**2  # the column's filter: the image needs no gradient
    assert cost.backward == 2 * cost.forward - pixels


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("fold", ["mean", "attention"])
def test_the_test_time_training_run_itself_does_what_the_costs_say(precision: str, fold: str, monkeypatch) -> None:
    config = ttt.TTTConfig(student=replace(SMALL, fold=fold), iterations=3, precision=precision)
    operations, found = compute.ttt_run(config)
    step = student_cost(config.student, formulation="factorised")
    assert operations == 3 * (step.forward + step.backward) + step.forward
    assert found.peak > 4 * 4 * step.parameters  # weights, gradients, two averages
    monkeypatch.setattr(compute, "_Uncomputed", contextlib.nullcontext)  # the same where products are computed
    assert compute.ttt_run(config) == (operations, found)


def _vit(layers: int, width: int, tokens: int) -> int:
    """Multiply-adds of transformer blocks: projections 4 w^2, MLP 8 w^2, scores and their average 2 n w."""
    return layers * tokens * (12 * width**2 + 2 * tokens * width)


def test_towers_are_counted_as_their_layers_multiply_out_and_meet_the_published_profile() -> None:
    for name, layers, width, patch, out in (("ViT-B-16", 12, 768, 16, 512), ("ViT-L-14", 24, 1024, 14, 768)):
        n = (224 // patch) ** 2
        by_hand = n * 3 * patch**2 * width + _vit(layers, width, n + 1) + width * out
        assert (tower_cost(name).forward, compute.feature_width(name)) == (2 * by_hand, out)
    image, text, both = (tower_cost("ViT-B-16", tower) for tower in ("image", "text", "both"))
    assert [2 * image.gmac, 2 * text.gmac] == pytest.approx([35.13, 5.96], rel=0.005)
    assert both.forward == image.forward + text.forward
    assert both.parameters == image.parameters + text.parameters == 149_620_737
    # one text of 77 tokens, to its output; prompt tuning needs the gradient of activations only: as much again, and attention's
    assert text.forward == 2 * (_vit(12, 512, 77) + 512 * 512)
    assert text.forward < compute.prompt_backward("ViT-B-16") < 1.1 * text.forward


def test_an_unknown_model_is_named_and_an_untrained_one_raises_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"unknown open_clip model 'ViT-B-61'.*Did you mean 'ViT-B-16'"):
        tower_cost("ViT-B-61")
    compute.clip_model("ViT-B-32")
    assert not caplog.records


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tracked_peak_of_a_case_counted_by_hand(device: str) -> None:
    held = torch.zeros(1000, device=device)  # 4000 bytes

    def run() -> None:
        a = held + 1  # 4000
        b = a.view(10, 100)  # a view: nothing new
        del a
        c = torch.cat([b, b])  # 8000, b still there: 16000 with what is held
        del b
        c[0, 0] = 1.0  # in place
        _ = c[:1] * 2  # 400

    assert compute.memory(run, [held]) == compute.Memory(held=4000, peak=16000)
    assert compute.memory(run, [held, held.view(2, 500)]).added == 12000
    assert compute.memory(run).peak == 12000  # the input is not counted unless it is held


def test_tracked_peak_sees_what_the_backward_pass_keeps_and_makes() -> None:
    w = torch.ones(1000, requires_grad=True)

    def forward() -> torch.Tensor:
        return w.exp().exp().sum()

    with torch.no_grad():
        assert compute.memory(forward).peak == 8000
    assert compute.memory(forward).peak == 8004  # both results are kept for the backward pass, and the sum
    # both kept, the sum and its gradient, the first gradient (expanded: no bytes), and the next one
    assert compute.memory(lambda: forward().backward()).peak == 12008


def draw(config: model.APMConfig, formulation: str = "plain") -> compute.Student:
    """A student in float64, its image the same for every formulation."""
    weights = model.draw_parameters(config, torch.Generator().manual_seed(0), std=0.2, dtype=torch.float64)
    image = torch.randn(1, 3, *config.image_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return compute.Student(config, weights, model.patches(image, config), formulation)


@pytest.mark.parametrize("formulation", compute.FORMULATIONS)
def test_memory_grows_with_the_chunk_and_operations_are_those_of_the_whole_pass(formulation: str) -> None:
    costs = {chunk: compute.chunk_cost(SMALL, chunk, formulation=formulation) for chunk in (1, 7, 16, 64)}
    added = [found.added for _, found in costs.values()]
    assert added == sorted(added)
    assert added[-1] > 4 * added[0] or formulation == "factorised"
    assert len({count for count, _ in costs.values()}) == 1  # however the columns come
    whole = student_cost(SMALL, formulation=formulation).forward
    heads = 2 * (SMALL.locations - 1) * SMALL.hidden[-1] * SMALL.width  # of columns that come one by one: each its own
    assert costs[7][0] == whole + (heads if formulation == "factorised" else 0)
    with torch.no_grad():
        assert costs[7][0] == compute.flops(lambda: list(draw(SMALL, formulation).stages(7)))
    with pytest.raises(ValueError, match="at least 1 column, found 0"):
        compute.chunk_cost(SMALL, 0, formulation=formulation)


def test_chunks_hold_the_whole_student_and_their_peak_is_that_by_hand() -> None:
    for name in ("released", "attention"):  # convolution and fold too: MLP and head alone leave 6 % out
        config = CONFIGS[name]
        count, _ = compute.chunk_cost(config, config.locations)
        assert count == student_formula(config) > 1.02 * student_cost(config, part="columns").forward
    _, found = compute.chunk_cost(SMALL, 64)
    assert found.held == 4 * (student_cost(SMALL).parameters + 64 * 48 + 64 * 64)  # weights, patches, P
    # all columns at once: T, places (int64), their queries and the first layer's result
    assert found.added == 4 * 64 + 64 * 8 + 4 * 64 * (128 + 256)


@pytest.mark.parametrize("fold", ["mean", "attention"])
@pytest.mark.parametrize("changes", [{}, {"local_patch": True}, {"kernels": 3}])
@pytest.mark.parametrize("formulation", compute.FORMULATIONS)
def test_chunks_of_any_size_give_the_feature_of_the_whole_grid(formulation: str, changes: dict, fold: str) -> None:
    student = draw(replace(SMALL, fold=fold, **changes), formulation)
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = plain.PlainStudent(student.config, student.weights)(image[0])[0].detach()
    for chunk in (1, 7, 64):
        torch.testing.assert_close([*student.stages(chunk)][-1], expected)


def test_times_are_scaled_to_the_whole_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(compute.time, "perf_counter", lambda: float(next(clock)))  # every measurement takes 1 s
    # before the columns 1 s and after them 1 s are done once; the columns' 1 s is for an eighth of them
    part = compute.time_columns(SMALL, 2, most=4, repeats=2)
    assert (part["seconds"], part["least"], part["most"], part["columns run (%)"]) == (10.0, 10.0, 10.0, 12.5)
    whole = compute.time_columns(SMALL, 64, most=4, repeats=2)
    assert (whole["seconds"], whole["columns run (%)"], whole["columns at a time"]) == (3.0, 100.0, "64 at a time")
    with pytest.raises(ValueError, match="repeats must be at least 1, found 0"):
        compute.time_columns(SMALL, 2, repeats=0)


def test_time_of_a_run_is_start_iterations_and_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """An iteration is forward, backward and Adam; the last look is one more forward pass."""
    done, reads, objective = [], itertools.count(1), ttt.objective
    monkeypatch.setattr(ttt, "objective", lambda *a, **k: (done.append("forward"), objective(*a, **k))[1])
    # a clock that counts forward passes, and ten for every reading
    monkeypatch.setattr(compute.time, "perf_counter", lambda: float(len(done) + 10 * next(reads)))
    assert list(compute.time_ttt(ttt.TTTConfig(student=SMALL, iterations=4)).values()) == [10, (3 + 10) / 3, 3, 11]
    with pytest.raises(ValueError, match="at least 2 are needed, found 1"):
        compute.time_ttt(ttt.TTTConfig(student=SMALL, iterations=1))
    with pytest.raises(ValueError, match=f"on cuda warm up: at least {lockstep.WARM_UP + 2} are needed, found 4"):
        compute.time_ttt(ttt.TTTConfig(student=SMALL, iterations=4), device="cuda")


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_timed_only_where_it_is_computed(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has, raising=False)
    config = ttt.TTTConfig(student=SMALL, iterations=2)
    rows = {p: compute.time_ttt(replace(config, precision=p)) for p in ("float32", "bfloat16")}
    assert [compute.emulated(p, "cpu") for p in rows] == [False, not has]
    assert [row["iterations timed"] for row in rows.values()] == [1, int(has)]
    assert np.isnan(rows["bfloat16"]["iteration (s)"]) == (not has)
    assert f"{torch.get_num_threads()} thread" in compute.hardware("cpu")


def test_tables_of_costs_are_those_that_were_accepted_and_say_where_the_published_figures_are_met(
    said: dict, same_as_accepted
) -> None:
    of = profiles.load("mini", "04_compute")
    table = cost_tables.conventions({name: preset(name) for name in of["students"]}, of["towers"], said)
    ratios = cost_tables.ratios(RELEASED, of["iterations"], said)
    costs = cost_tables.ttt_costs(RELEASED, of["teachers"], of["iterations"], said, **of["tpt"])
    same_as_accepted({"04_conventions": table, "04_ratios": ratios, "04_ttt_cost": costs}, kinds="exact")
    meets = [table.index[table["meets it in"] == unit].tolist() for unit in ("multiply-adds", "operations")]
    halves = ("released", "MLP + head, half the columns"), ("released", "MLP + head, 224 px")
    assert meets == [[halves[0], ("ViT-B-16", "image + one text")], [halves[1]]]
    moved = said | {("Fig 2", "APM", "GFLOPs total, 224x224 image"): "30"}
    assert cost_tables.conventions({"released": RELEASED}, [], moved)["meets it in"].iloc[0] == "neither"


def test_whole_runs_add_up(said: dict) -> None:
    costs = cost_tables.ttt_costs(RELEASED, ["ViT-B-16"], 20, said, views=64, classes=10, steps=1)
    image, text, both = (tower_cost("ViT-B-16", tower).gmac for tower in ("image", "text", "both"))
    total = costs["total (GMAC)"].to_numpy()
    assert total[0] == pytest.approx(both + 19 * student_cost(RELEASED, 512, part="columns").gmac)
    assert total[0] == pytest.approx(210.5, rel=0.01)  # Table 4's ideal
    student = student_cost(replace(RELEASED, width=512))
    assert total[3] == pytest.approx(image + 21 * student.gmac + 20 * student.backward / 2e9)
    prompt = 10 * (2 * text + compute.prompt_backward("ViT-B-16") / 2e9)
    assert total[[2, 5, 6]] == pytest.approx([20 * both, 64 * image, 64 * image + prompt])
    with pytest.raises(ValueError, match="iterations must be at least 1, found 0"):
        cost_tables.ttt_costs(RELEASED, [], 0, said, views=64, classes=10, steps=1)
