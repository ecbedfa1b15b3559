"""Costs: counter and formula give the same operations, tracked bytes are those of a case counted by hand, chunks agree."""

import itertools
from dataclasses import replace

import numpy as np
import plain
import pytest
import torch

from apm import lockstep, model, ttt
from apm.analysis import numbers
from apm.data import published
from apm.experiments import compute, cost_tables
from apm.model import preset

RELEASED, FIVE = preset("released"), preset("five_layer")
SMALL = preset("mini", rgb_head=False)
CONFIGS = {
    "released": RELEASED,
    "five_layer": FIVE,
    "mini": SMALL,
    "attention": replace(SMALL, fold="attention", kernels=2, grid=(8, 4)),
}


def student_formula(
    config: model.APMConfig, columns: int | None = None, *, formulation: str = "plain", part: str = "all"
) -> int:
    """The operations of `student_cost(...).forward`, from the sizes of the layers: a second way to the same number.

    For column="conv" without local patches.
    """
    n = config.locations if columns is None else columns
    h, w = config.grid
    d, last = config.width, config.hidden[-1]
    widths = (config.query_width, *config.hidden)
    mlp = [a * b for a, b in itertools.pairwise(widths)]
    if part == "columns":
        return 2 * n * (sum(mlp) + last * d)
    column = config.locations * 3 * config.patch**2 * config.kernels
    if formulation == "plain":
        pooling = (
            0 if config.fold == "mean" else 2 * d * d + n * (2 * d * d + 2 * d)
        )  # in and out, keys and values, scores
        return 2 * (column + n * (sum(mlp) + last * d) + pooling)
    pooling = last * d
    if (
        config.fold == "attention"
    ):  # query, keys folded into it, values, out; scores and pooling before the head; places
        pooling = 4 * d * d + 2 * config.heads * (last * d + last * n) + 2 * config.heads * (d // 2) * (h + w)
    return 2 * (column + (1 + h + w) * mlp[0] + n * sum(mlp[1:]) + pooling)


@pytest.fixture(scope="module")
def said() -> dict[tuple[str, str, str], str]:
    return published.load("table4").set_index(["table", "row", "column"])["text"].to_dict()


# ------------------------------------------------------------------------------------------------------------- operations


def test_flops_counts_two_operations_per_multiply_add_and_the_backward_pass() -> None:
    a, b = torch.empty(3, 4, device="meta"), torch.empty(4, 5, device="meta", requires_grad=True)
    assert compute.flops(lambda: a @ b) == 2 * 3 * 4 * 5
    assert compute.flops(lambda: (a @ b).sum().backward()) == 2 * 2 * 3 * 4 * 5  # a needs no gradient
    with torch.no_grad():
        assert compute.flops(lambda: (a @ b).sum().backward()) == 2 * 2 * 3 * 4 * 5


@pytest.mark.parametrize("formulation", compute.FORMULATIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_counted_operations_of_the_student_are_those_of_the_formula(name: str, formulation: str) -> None:
    config = CONFIGS[name]
    cost = compute.student_cost(config, formulation=formulation)
    assert cost.forward == student_formula(config, formulation=formulation)
    assert cost.parameters == model.count_parameters(replace(config, rgb_head=False))
    assert cost.columns == config.locations


@pytest.mark.parametrize("columns", [1, 256, 512, 1024])
def test_mlp_and_head_of_the_released_student_by_hand(columns: int) -> None:
    by_hand = 2048 * 4096 + 4096 * 2048 + 2048 * 1024 + 1024 * 768
    cost = compute.student_cost(RELEASED, columns, part="columns")
    assert cost.forward == 2 * columns * by_hand == student_formula(RELEASED, columns, part="columns")
    assert cost.backward == 2 * cost.forward
    assert cost.gflop == pytest.approx(2 * cost.gmac) == pytest.approx(columns * by_hand / 5e8)
    assert compute.student_cost(RELEASED, columns).forward == student_formula(RELEASED, columns)


def test_backward_is_two_products_per_product_but_for_the_pixels() -> None:
    cost = compute.student_cost(SMALL)
    pixels = 2 * SMALL.locations * 3 * SMALL.patch**2  # the column's filter: the image needs no gradient
    assert cost.backward == 2 * cost.forward - pixels


def test_the_test_time_training_run_itself_does_what_the_costs_say() -> None:
    config = ttt.TTTConfig(student=SMALL, iterations=3)
    operations, found = compute.ttt_run(config)
    step = compute.student_cost(SMALL, formulation="factorised")
    assert operations == 3 * (step.forward + step.backward) + step.forward
    assert found.peak > 4 * 4 * step.parameters  # weights, gradients, two averages
    assert found == compute.ttt_run(config)[1]


# ----------------------------------------------------------------------------------------------------------------- towers


def _vit(layers: int, width: int, tokens: int) -> int:
    """Multiply-adds of transformer blocks: projections 4 w^2, MLP 8 w^2, scores and their average 2 n w."""
    return layers * tokens * (12 * width**2 + 2 * tokens * width)


@pytest.mark.parametrize(
    ("name", "layers", "width", "patch", "out"), [("ViT-B-16", 12, 768, 16, 512), ("ViT-L-14", 24, 1024, 14, 768)]
)
def test_image_towers_are_counted_as_their_layers_multiply_out(
    name: str, layers: int, width: int, patch: int, out: int
) -> None:
    n = (224 // patch) ** 2
    by_hand = n * 3 * patch**2 * width + _vit(layers, width, n + 1) + width * out
    cost = compute.tower_cost(name)
    assert cost.forward == 2 * by_hand
    assert compute.feature_width(name) == out


def test_vit_b_16_meets_open_clip_s_published_profile() -> None:
    image, text, both = (compute.tower_cost("ViT-B-16", tower) for tower in ("image", "text", "both"))
    assert image.gflop == pytest.approx(35.13, rel=0.005)
    assert text.gflop == pytest.approx(5.96, rel=0.005)
    assert both.forward == image.forward + text.forward
    assert both.parameters == image.parameters + text.parameters == 149_620_737
    # one text of 77 tokens, to its output; prompt tuning needs the gradient of activations only: as much again, and attention's
    assert text.forward == 2 * (_vit(12, 512, 77) + 512 * 512)
    assert text.forward < compute.prompt_backward("ViT-B-16") < 1.1 * text.forward


def test_an_unknown_model_is_named_and_an_untrained_one_raises_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"unknown open_clip model 'ViT-B-61'.*Did you mean 'ViT-B-16'"):
        compute.tower_cost("ViT-B-61")
    compute.clip_model("ViT-B-32")
    assert not caplog.records


# ----------------------------------------------------------------------------------------------------------------- memory


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


@pytest.mark.parametrize("formulation", compute.FORMULATIONS)
def test_memory_grows_with_the_chunk_and_operations_are_those_of_the_whole_pass(formulation: str) -> None:
    costs = {chunk: compute.chunk_cost(SMALL, chunk, formulation=formulation) for chunk in (1, 7, 16, 64)}
    added = [found.added for _, found in costs.values()]
    assert added == sorted(added)
    assert added[-1] > 4 * added[0] or formulation == "factorised"
    assert len({count for count, _ in costs.values()}) == 1  # however the columns come
    whole = compute.student_cost(SMALL, formulation=formulation).forward
    heads = 2 * (SMALL.locations - 1) * SMALL.hidden[-1] * SMALL.width  # of columns that come one by one: each its own
    assert costs[7][0] == whole + (heads if formulation == "factorised" else 0)
    x = torch.zeros(1, 64, 48, dtype=torch.float64)
    with torch.no_grad():
        run = compute.flops(lambda: compute.image_to_feature(draw(SMALL), x, SMALL, 7, formulation=formulation))
    assert costs[7][0] == run


@pytest.mark.parametrize("name", ["released", "attention"])
def test_chunks_hold_the_whole_student(name: str) -> None:
    """Convolution and fold are in the operations of the chunks: not only MLP and head, which leave 6 % out."""
    config = CONFIGS[name]
    count, _ = compute.chunk_cost(config, config.locations)
    assert count == compute.student_cost(config).forward == student_formula(config)
    assert count > 1.02 * compute.student_cost(config, part="columns").forward


def test_peak_of_one_chunk_by_hand() -> None:
    w = compute.student_cost(SMALL).parameters
    _, found = compute.chunk_cost(SMALL, 64)
    assert found.held == 4 * (w + 64 * 48 + 64 * 64)  # weights, patches, P
    # all columns at once: T, places (int64), their queries and the first layer's result
    assert found.added == 4 * 64 + 64 * 8 + 4 * 64 * (128 + 256)


# ------------------------------------------------------------------------------------------------- chunks agree, and time


def draw(config: model.APMConfig) -> dict[str, torch.Tensor]:
    return model.draw_parameters(config, torch.Generator().manual_seed(0), std=0.2, dtype=torch.float64)


@pytest.mark.parametrize("fold", ["mean", "attention"])
@pytest.mark.parametrize(
    "changes", [{}, {"local_patch": True}, {"kernels": 3}, {"column": "tokens", "token_width": 12}]
)
@pytest.mark.parametrize("formulation", compute.FORMULATIONS)
def test_chunks_of_any_size_give_the_feature_of_the_whole_grid(formulation: str, changes: dict, fold: str) -> None:
    config = replace(SMALL, fold=fold, **changes)
    weights = draw(config)
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens = torch.randn(1, 64, 12, dtype=torch.float64) if changes.get("column") else None
    expected = plain.PlainStudent(config, weights)(image[0], None if tokens is None else tokens[0])[0].detach()
    x = model.patches(image, config)
    for chunk in (1, 7, 64):
        found = compute.image_to_feature(weights, x, config, chunk, formulation=formulation, tokens=tokens)
        torch.testing.assert_close(found, expected)


def test_bad_chunks() -> None:
    with pytest.raises(ValueError, match="at least 1 column, found 0"):
        compute.chunk_cost(SMALL, 0)


def test_times_are_scaled_to_the_whole_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(compute.time, "perf_counter", lambda: float(next(clock)))  # every measurement takes 1 s
    # before the columns 1 s and after them 1 s are done once; the columns' 1 s is for an eighth of them
    part = compute.time_columns(SMALL, 2, most=4, repeats=2)
    assert (part.seconds, part.least, part.most, part.share) == (10.0, 10.0, 10.0, 1 / 8)
    whole = compute.time_columns(SMALL, 64, most=4, repeats=2)
    assert (whole.seconds, whole.share) == (3.0, 1.0)
    with pytest.raises(ValueError, match="repeats must be at least 1, found 0"):
        compute.time_columns(SMALL, 2, repeats=0)


def test_time_of_a_run_is_start_iterations_and_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    # the call; before updates 1 and 2 and after the last; the end: weights 5 s, warm-up 20 s, three more 6 s, last look 0.5 s
    stamps = iter([0.0, 5.0, 25.0, 31.0, 31.5])
    monkeypatch.setattr(compute.time, "perf_counter", lambda: next(stamps))
    run = compute.time_ttt(ttt.TTTConfig(student=SMALL, iterations=4))
    assert run == (5.0, 2.0, 0.5, 3)
    assert run.extrapolated(20) == 45.5
    with pytest.raises(ValueError, match="at least 2 are needed, found 1"):
        compute.time_ttt(ttt.TTTConfig(student=SMALL, iterations=1))
    with pytest.raises(ValueError, match=f"on cuda warm up: at least {lockstep.WARM_UP + 2} are needed, found 4"):
        compute.time_ttt(ttt.TTTConfig(student=SMALL, iterations=4), device="cuda")


def test_the_timed_iterations_hold_every_pass_of_the_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """An iteration is forward, backward and Adam; the last look is one more forward pass."""
    done: list[str] = []
    objective = ttt.objective
    monkeypatch.setattr(ttt, "objective", lambda *a, **k: (done.append("forward"), objective(*a, **k))[1])
    monkeypatch.setattr(compute, "_clock", lambda device: float(len(done)))  # a clock that counts forward passes
    assert compute.time_ttt(ttt.TTTConfig(student=SMALL, iterations=4)) == (0.0, 1.0, 1.0, 3)


def test_hardware_names_threads_and_torch() -> None:
    text = compute.hardware("cpu")
    assert f"{torch.get_num_threads()} thread" in text
    assert torch.__version__ in text


# ----------------------------------------------------------------------------------------------------------------- tables


def test_conventions_reproduce_the_published_figures(said: dict) -> None:
    table = cost_tables.conventions({"released": RELEASED}, ["ViT-B-16"], said)
    meets = table["meets it in"].to_dict()
    assert meets["released", "MLP + head, half the columns"] == "multiply-adds"
    assert meets["released", "MLP + head, 224 px"] == "operations"
    assert meets["ViT-B-16", "image + one text"] == "multiply-adds"
    assert [word in ("neither", "") for word in meets.values()].count(True) == len(meets) - 3
    assert table["multiply-adds (G)"].iloc[0] == pytest.approx(10.07, abs=0.005)
    last = table.iloc[-1]
    assert (round(last["multiply-adds (G)"], 2), last["/ ViT-B-16 image"]) == (17.56, 1.0)
    moved = said | {("Fig 2", "APM", "GFLOPs total, 224x224 image"): "30"}
    assert cost_tables.conventions({"released": RELEASED}, ["ViT-B-16"], moved)["meets it in"].iloc[0] == "neither"


def test_whole_runs_add_up(said: dict) -> None:
    tpt = {"views": 64, "classes": 10, "steps": 1}
    costs = cost_tables.ttt_costs(RELEASED, ["ViT-B-16"], 20, said, **tpt)
    both, image = compute.tower_cost("ViT-B-16", "both").gmac, compute.tower_cost("ViT-B-16").gmac
    total = costs["total (GMAC)"].to_numpy()
    assert total[0] == pytest.approx(both + 19 * compute.student_cost(RELEASED, 512, part="columns").gmac)
    assert total[0] == pytest.approx(210.5, rel=0.01)  # Table 4's ideal
    assert total[2] == pytest.approx(20 * both)
    student = compute.student_cost(replace(RELEASED, width=512))
    assert total[3] == pytest.approx(image + 21 * student.gmac + 20 * student.backward / 2e9)
    assert total[5] == pytest.approx(64 * image)
    text = compute.tower_cost("ViT-B-16", "text").gmac
    assert total[6] == pytest.approx(total[5] + 10 * (2 * text + compute.prompt_backward("ViT-B-16") / 2e9))
    assert np.allclose(costs["total (GFLOP)"], 2 * total)
    assert costs.index.is_unique
    assert costs['published "GFLOPs", measured'].tolist()[2] == "462"
    with pytest.raises(ValueError, match="iterations must be at least 1, found 0"):
        cost_tables.ttt_costs(RELEASED, [], 0, said, **tpt)


def test_memory_table_adds_the_resident_towers(said: dict) -> None:
    run = compute.Memory(held=1_000_000, peak=3_000_000)
    table = cost_tables.memory_table(SMALL, [1, 64], {"float32": run}, {"ViT-B-16": run}, said)
    assert len(table) == 7
    both = table.loc["the same with ViT-B-16 resident, both towers", "float32"]
    assert both["peak (MB)"] == pytest.approx(3 + 4 * 149.620737)
    assert both["above it (MB)"] == pytest.approx(2)
    assert both["published"] == "1.8 (u) + 0.6 (s) GB ideal, 2.7 (s+u) GB measured"


def test_ratios_name_what_stands_beside_what(said: dict) -> None:
    table = cost_tables.ratios(RELEASED, 20, said)
    assert {name: round(float(ratio), 2) for name, ratio in table["ratio"].items()} == {
        ("one pass", "as published: MLP + head, half the columns"): 0.49,
        ("one pass", "student of ViT-B-16, a picture of half the side, plain"): 0.29,
        ("one pass", "student of ViT-B-16, plain"): 1.16,
        ("one pass", "student of ViT-L-14, plain"): 1.22,
        ("one pass", "student of ViT-B-16, factorised"): 0.64,
        ("one pass", "student of ViT-L-14, factorised"): 0.64,
        ("20 iterations", "forward and backward beside forward alone, plain"): 3.07,
        ("20 iterations", "forward, plain"): 1.09,
        ("20 iterations", "forward and backward, plain"): 1.03,
        ("20 iterations", "forward and backward beside forward alone, factorised"): 1.72,
        ("20 iterations", "forward, factorised"): 0.62,
        ("20 iterations", "forward and backward, factorised"): 0.58,
    }
    assert [round(float(cell), 2) for cell in table["published"]] == [0.49] * 6 + [0.52] * 6
    assert table["beside"].ne("").all()
    assert numbers.is_small(table["ratio"])  # shown as 1.16 and 1.22, not as 1.2 twice


def test_times_are_costs_of_this_machine_with_their_ratios() -> None:
    timings = [
        compute.Timing("student, plain", 7, 1.5, 1.0, 2.0, 0.25),
        compute.Timing("student, plain", 64, 0.5, 0.4, 0.6),
        compute.Timing("student, factorised", 64, 0.2, 0.2, 0.2),
        compute.Timing("ViT-B-16 image tower", None, 0.4, 0.3, 0.5),
    ]
    table = cost_tables.timing_table(timings)
    assert table.index.tolist()[::3] == [("student, plain", "7 at a time"), ("ViT-B-16 image tower", "")]
    assert table["columns run (%)"].tolist() == [25.0, 100.0, 100.0, 100.0]
    assert "CUDA peak (MB)" not in table
    assert cost_tables.timing_table([timings[3]._replace(cuda_peak=3_000_000)])["CUDA peak (MB)"].tolist() == [3.0]
    times = cost_tables.time_ratios(timings)["times"]
    assert times["plain", "7 at a time / all at once"] == 3.0
    assert times["plain", "all at once / ViT-B-16 image tower"] == 1.25
