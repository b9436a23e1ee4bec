"""The benchmark of a GPU: on the CPU, on an imitated GPU, and its rows by hand."""

import copy
import json
import time
from dataclasses import replace

import pytest
import torch
from benchmark_options import GPU
from fake_gpu import fake_gpu

from rere.benchmarks.gpu import agreement, command, sft, speed
from rere.benchmarks.gpu.measure import PEAKS, Meter, OutOfTime, Side, find_peak
from rere.benchmarks.gpu.models import QWEN, SMOLLM, load_timed, make_model, make_rows, with_titles
from rere.benchmarks.speed import rl, steps
from rere.errors import InputError

COMPARED = {
    "lists": [
        *("beam search, vocabulary", "beam search, catalogue", "rollout, iid"),
        *("rollout, oversample", "rollout, oversample_with_target", "rollout, stochastic_beam"),
        *("rollout, unconstrained", "rollout, unconstrained_beam"),
    ],
    "gradients": [
        *("scoring with gradient, vocabulary", "scoring with gradient, catalogue"),
        *("RL step, vocabulary", "RL step, catalogue", "SFT step"),
    ],
}
SIDES = {
    "search, 4 beams": ["rere, vocabulary", "rere, catalogue", "transformers generate"],
    "RL step": ["rere, vocabulary", "rere, catalogue", "plain step"],
    "SFT step": ["rere", "plain step"],
}


def read(path):
    return json.loads(path.read_text())


def status_of_parts(results):
    return {part["name"]: part["status"] for part in results["parts"]}


def make_meter(**changes):
    meter = Meter(torch.device("cpu"), time.perf_counter() + 100, repeats=2, peak=1e12)
    return meter._replace(**changes)


# ------------------------------------------------------------------------------------- command


def test_the_parts_are_measured_in_the_order_of_importance(gpu_results):
    results = read(gpu_results)
    first, second = ("agreement, 2 layers, 448 wide", "agreement, 2 layers, 896 wide")
    parts = [first, second, *(f"{name}, {what}" for name in (QWEN, SMOLLM) for what in SIDES)]
    assert status_of_parts(results) == dict.fromkeys(parts, "measured")
    assert list(status_of_parts(results)) == parts
    assert sum(part["seconds"] for part in results["parts"]) <= results["seconds"]
    assert results["machine"]["device"] == "cpu"
    assert results["machine"]["dtype"] == "bfloat16"
    assert results["options"]["scale"] == 16


def test_the_cpu_agrees_with_itself(gpu_results):
    rows = read(gpu_results)["agreement"]
    assert [(row["model"], row["dtype"], row["what"]) for row in rows] == [
        (f"2 layers, {width} wide", dtype, what)
        for width in (448, 896)
        for dtype in ("float32", "bfloat16")
        for what in (*COMPARED["lists"], *COMPARED["gradients"])
    ]
    for row in rows:
        keys = row.keys() - {"model", "dtype", "what"}
        if row["what"] in COMPARED["lists"]:
            assert keys == {"equal_lists"}
            assert row["equal_lists"] == 1 if row["dtype"] == "float32" else row["equal_lists"] <= 1
        else:
            assert keys == {"value_difference", "gradient_difference"}
            largest = 1e-6 if row["dtype"] == "float32" else 2
            assert all(row[key] <= largest for key in keys)


def test_every_side_is_timed(gpu_results):
    rows = read(gpu_results)["speed"]
    assert [(row["model"], row["what"], row["side"]) for row in rows] == [
        (name, what, side) for name in (QWEN, SMOLLM) for what in SIDES for side in SIDES[what]
    ]
    seconds = {(row["model"], row["what"], row["side"]): row["seconds"] for row in rows}
    for row in rows:
        plain = seconds[row["model"], row["what"], SIDES[row["what"]][-1]]
        is_plain = row["side"] == SIDES[row["what"]][-1]
        assert row["speedup"] == (None if is_plain else pytest.approx(plain / row["seconds"]))
        assert row["status"] == "measured"
        assert row["flops"] > 0
        assert row["tokens_per_second"] > 0
        assert row["share_of_peak"] is row["peak_memory_mb"] is None
        is_ours = row["side"].startswith("rere")
        assert (row["planned_memory_mb"] is not None) == is_ours


def test_the_markdown_has_both_tables(gpu_results):
    text = gpu_results.with_suffix(".md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4 * 13 + 2 + 2 * 8
    assert text.startswith("device cpu, dtype bfloat16, torch ")


def test_what_there_is_no_time_for_is_listed(tmp_path):
    command.benchmark_gpu(GPU.model_copy(update={"seconds": 1e-9}), None, tmp_path / "gpu.json")
    results = read(tmp_path / "gpu.json")
    assert set(status_of_parts(results).values()) == {"not measured: out of time"}
    assert len(results["parts"]) == 8
    assert results["agreement"] == results["speed"] == []
    assert (
        "* SmolLM2-135M, SFT step: not measured: out of time"
        in (tmp_path / "gpu.md").read_text().splitlines()
    )


def test_a_part_that_fails_does_not_end_the_others(tmp_path, monkeypatch):
    def compare_with_cpu(name, *_):
        if "448" in name:
            raise RuntimeError("CUDA error: an illegal memory access\nand more")
        return [{"model": name}]

    monkeypatch.setattr(agreement, "compare_with_cpu", compare_with_cpu)
    monkeypatch.setattr(speed, "list_parts", lambda *_: [])
    path = tmp_path / "gpu.json"
    with pytest.raises(InputError, match=r"^agreement, 2 layers, 448 wide: failed; .*gpu\.json"):
        command.benchmark_gpu(GPU, None, path)
    results = read(path)
    assert list(status_of_parts(results).values()) == [
        "failed: CUDA error: an illegal memory access",
        "measured",
    ]
    assert "in compare_with_cpu" in results["parts"][0]["traceback"]
    assert results["agreement"] == [{"model": "2 layers, 896 wide"}]


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "choose_device", lambda device: torch.device("cpu"))
    with pytest.raises(InputError, match="torch finds no GPU; --device cpu tries the command"):
        command.benchmark_gpu(
            GPU.model_copy(update={"device": "auto"}), None, tmp_path / "gpu.json"
        )
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_weights_is_taken(fixed_model):
    for name, layers in ((SMOLLM, 2), (QWEN, 1)):
        model = load_timed(name, GPU, fixed_model, torch.device("cpu"))
        assert len(model.float32.model.layers) == layers


# ------------------------------------------------------------------------------------- measure


def test_a_row_by_hand():
    def multiply(size, rows):
        time.sleep(0.02 if size == 2 else 0.01)
        return (torch.ones(10, 20) @ torch.ones(20, 30)).sum().item()

    sides = [Side("ours", multiply, [1, 2]), Side("plain", multiply, [2])]
    ours, plain = make_meter(peak=1e6).measure(("model", "step"), sides, [1, 2, 3], tokens=60)
    assert [row["choice"] for row in (ours, plain)] == [1, 2]
    for row in (ours, plain):
        assert row["rows"] == 3
        assert row["flops"] == 2 * 10 * 20 * 30
        assert row["share_of_peak"] == pytest.approx(12_000 / row["seconds"] / 1e6)
        assert row["tokens_per_second"] == pytest.approx(60 / row["seconds"])
    assert 0.01 < ours["seconds"] < plain["seconds"]
    assert ours["speedup"] == plain["seconds"] / ours["seconds"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_side_may_be_out_of_memory(error):
    tried = []

    def take(size, rows):
        tried.append(size)
        if size > 2:
            raise error

    sides = [Side("ours", take, [1, 4, 8]), Side("plain", take, [3, 4])]
    ours, plain = make_meter().measure(("model", "step"), sides, [1], tokens=1)
    assert ours["choice"] == 1
    assert ours["speedup"] is None
    names = {"model": "model", "what": "step", "side": "plain"}
    assert plain == {**names, "status": "out of memory", "rows": 1}
    assert tried[:4] == [1, 1, 4, 3]  # a warm-up of each, and no larger size


def test_another_error_is_raised():
    def take(size, rows):
        raise RuntimeError("CUDA error: device-side assert")

    with pytest.raises(RuntimeError, match="device-side assert"):
        make_meter().measure(("model", "step"), [Side("ours", take, [1])], [1], tokens=1)


def test_time_may_run_out_within_a_measurement():
    meter = make_meter(deadline=time.perf_counter() + 0.1)
    sides = [Side("ours", lambda size, rows: time.sleep(0.06), range(1, 9))]
    with pytest.raises(OutOfTime):
        meter.measure(("model", "step"), sides, [1], tokens=1)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Tesla T4", None)],
)
def test_the_peak_of_a_gpu_is_known_by_its_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert find_peak(torch.device("cuda")) == peak
    assert find_peak(torch.device("cpu")) is None
    assert list(PEAKS).index("H100 PCIe") < list(PEAKS).index("H100")


# ----------------------------------------------------------------------------------------- SFT


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trainers_step_is_the_plain_step(random_model, prompt_rows, dtype, tmp_path):
    models = dict.fromkeys(["float32", dtype], random_model.float32)
    model = replace(random_model, models=models, dtype=dtype)
    calls = sft.make_steps(model, tmp_path)
    ours = [calls[sft.OURS](size, prompt_rows) for size in (8, 3)]
    plain = [calls[sft.PLAIN](size, prompt_rows) for size in (8, 3)]
    if dtype == "float32":
        assert steps.are_same_steps(ours, plain)
    for result in (*ours, *plain):
        assert result.loss == pytest.approx(ours[0].loss, rel=0.01)
        assert result.gradient_norm == pytest.approx(ours[0].gradient_norm, rel=0.02)


# ----------------------------------------------------------------------------------- agreement


def test_lists_are_equal_except_for_ties():
    scores = [[-1.0, -2.0, -2.00001], [-1.0, -2.0, -3.0]]
    theirs = agreement.Lists([[[1], [2], [3]], [[1], [2], [3]]], scores)
    ours = agreement.Lists([[[1], [3], [2]], [[1], [3], [2]]], scores)
    assert agreement.compare(ours, theirs) == {"equal_lists": 0.5}


def test_a_difference_is_a_number_that_json_has():
    zero, nan = torch.zeros(2), torch.tensor([torch.nan, 1.0])
    assert agreement.difference(zero, zero) == "not finite"
    assert agreement.difference(torch.ones(2), nan) == "not finite"
    assert agreement.difference(zero, torch.ones(2)) == 1


def test_differences_are_relative():
    theirs = agreement.Scored(torch.tensor([3.0, 4.0]), torch.tensor([10.0, 0.0]))
    ours = agreement.Scored(torch.tensor([3.0, 4.5]), torch.tensor([torch.nan, 0.0]))
    assert agreement.compare(ours, theirs) == {
        "value_difference": pytest.approx(0.1),
        "gradient_difference": "not finite",
    }


# ------------------------------------------------------------------------------- imitated GPU


def test_the_imitated_gpu_agrees_with_the_cpu():
    weights = make_model(QWEN, GPU, num_hidden_layers=32)
    model = with_titles("model", weights, GPU, "float32")
    rows = rl.with_targets(model, make_rows(model, agreement.ROWS, 6, seed=0))
    groups = agreement.find_groups(model, [row.prompt for row in rows], rl.GROUP_SIZE)
    expected = agreement.measure(model, rows, groups)
    with fake_gpu() as gpu:
        on_gpu = copy.deepcopy(weights).to("meta")
        on_gpu.tie_weights()  # the imitation moves both embeddings
        moved = with_titles("model", on_gpu, GPU, "float32")
        found = agreement.measure(moved, rows, groups)
        assert gpu.by_name["aten._fused_adamw_"] == 3
    for what, theirs in expected.items():
        compared = agreement.compare(found[what], theirs)
        assert compared.pop("equal_lists", 1) == 1, what
        assert all(difference < 1e-4 for difference in compared.values()), what


def test_every_part_runs_on_the_imitated_gpu(monkeypatch):
    for module in (speed, steps):  # the imitation's tensors cannot change their type in place
        monkeypatch.setattr(module, "halve_linear_layers", lambda model: None)
    weights = make_model(SMOLLM, GPU, num_hidden_layers=16, vocab_size=16 * 100)
    options = GPU.model_copy(update={"prompts": 2, "sft_rows": 2})
    with fake_gpu():
        model = with_titles("model", weights.to("meta"), GPU, "bfloat16")
        monkeypatch.setattr(speed, "load_timed", lambda *_, **__: model)
        parts = speed.list_parts(options, None, make_meter(device=torch.device("meta")))
        for what, (_, measure) in zip(SIDES, parts, strict=False):
            rows = measure()
            assert [(row["what"], row["side"]) for row in rows] == [
                (what, side) for side in SIDES[what]
            ]
            assert {row["status"] for row in rows} == {"measured"}
            assert all(row["flops"] > 0 for row in rows)
