"""`rere plan`: what it prints, and its bytes beside the peak of the run that it is for."""

import pytest
import torch
from forks import STAGE_FORKS

from rere.cli import parse
from rere.config.evaluation import Recommend
from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions
from rere.planning.plan import Part, Plan, Target, as_text, plan_recommend, plan_training

GB = 10**9
CPU = Target(torch.device("cpu"), "float32", 8 * GB)


def rere(*arguments):
    return STAGE_FORKS.run("-m", "rere", *arguments)


TRAINING = ("--valid-rows", 4, "--validations", 1)
RUNS = {
    "sft": ("--batch-size", 16, "--rows-per-pass", 16, *TRAINING),
    "sft of small passes": ("--batch-size", 16, "--rows-per-pass", 4, *TRAINING),
    "rl": ("--prompts", 8, "--rows-per-pass", 8, "--group-size", 8, "--steps", 2, *TRAINING),
    "recommend": ("--num-beams", 8),
}


MEASURE = """
import sys
import torch
from rere.benchmarks.timing import measure_peak_memory
from rere.cli import parse
stage, tiny, large, output, *options = sys.argv[1:]
model = "--model" if stage == "recommend" else "--init"
for folder in (tiny, large):  # the first loads what every run needs
    command = parse(stage, [model, folder, "--output", f"{output}/{folder[-5:]}/run", *options])
    print(measure_peak_memory(command.run, torch.device("cpu")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_plan_is_within_15_percent_of_the_measured_peak(
    name, fixed_model, large_model, data, tmp_path
):
    stage, options = name.split()[0], list(map(str, RUNS[name]))
    ran = STAGE_FORKS.run(
        "-c", MEASURE, stage, fixed_model, large_model, tmp_path, "--data", data, *options
    )
    assert ran.returncode == 0, ran.stdout
    measured = float(ran.stdout.split()[-1]) * 1e6

    init = "--model" if stage == "recommend" else "--init"
    given = [init, str(large_model), "--data", str(data), "--device", "cpu"]
    command = parse(f"plan {stage}", [*given, *options])
    plan_run = plan_recommend if stage == "recommend" else plan_training
    plan = plan_run(command, str(large_model), data, 0, CPU)
    process = plan.lasting[0].bytes
    assert plan.peak - process == pytest.approx(measured, rel=0.15)


def test_the_peak_is_that_of_the_larger_moment():
    lasting = [Part("weights", 10), Part("optimizer", 20)]
    update, search = [Part("gradients", 5), Part("activations", 7)], [Part("search", 11)]
    load = [Part("file", 2)]
    assert Plan(lasting, load, update, search).peak == 42
    assert Plan(lasting, load, [], search).peak == 41
    assert Plan(lasting, load, [], []).peak == 32


PLAN = Plan(
    [Part("weights", 2 * GB)],
    [Part("file and copy", GB // 2)],
    [Part("gradients", GB), Part("activations", 4 * GB, "8 prompts")],
    [Part("search", GB // 2)],
)
RL = RlOptions(prompts=32, rows_per_pass=8)


def test_a_plan_in_words():
    assert as_text(PLAN, CPU, RL).splitlines() == [
        "                 GB",
        "weights        2.00  always",
        "file and copy  0.50  while loading",
        "gradients      1.00  in a pass",
        "activations    4.00  in a pass      8 prompts",
        "search         0.50  in a search",
        "peak           7.00  float32, cpu",
        "Fits into 8.0 GB.",
    ]


@pytest.mark.parametrize(
    ("memory", "changes", "lines"),
    [
        # 3 GB, and half a GB a row
        (12, {}, ["Fits into 12.0 GB.", "About rows_per_pass: 16 is the most that fits."]),
        (6, {}, ["Does not fit into 6.0 GB.", "About rows_per_pass: 4 is the most that fits."]),
        (
            2,
            {},
            [
                "Does not fit into 2.0 GB.",
                "Set gradient_checkpointing: true or optimizer: adafactor or lora_rank: 16 or "
                "sharded: true with several processes.",
            ],
        ),
        (
            2,
            {"gradient_checkpointing": True, "lora_rank": 8},
            [
                "Does not fit into 2.0 GB.",
                "Set optimizer: adafactor or sharded: true with several processes.",
            ],
        ),
        (
            2,
            {"gradient_checkpointing": True, "lora_rank": 8, "optimizer": "adafactor"},
            ["Does not fit into 2.0 GB.", "Take a smaller model."],
        ),
    ],
)
def test_the_verdict_says_what_to_change(memory, changes, lines):
    target = CPU._replace(memory=memory * GB)
    assert as_text(PLAN, target, RL.model_copy(update=changes)).splitlines()[-len(lines) :] == lines


def test_verdicts_on_recommending_and_on_a_device_elsewhere():
    plan = Plan([Part("weights", 2 * GB)], [], [], [Part("search", GB)])
    assert as_text(plan, CPU, Recommend()).splitlines()[-1] == "Fits into 8.0 GB."
    small = CPU._replace(memory=GB)
    assert as_text(plan, small, Recommend()).splitlines()[-1].startswith("Lower num_beams")
    assert "--memory" in as_text(plan, CPU._replace(memory=None), Recommend()).splitlines()[-1]


def test_precision_follows_the_device_and_its_memory_is_known_or_given():
    assert Target.choose(torch.device("cuda"), "auto", None) == (
        torch.device("cuda"),
        "bfloat16",
        None,
        1,
    )
    here = Target.choose(torch.device("cpu"), "auto", None)
    assert here.dtype == "float32" and here.memory > GB
    assert Target.choose(torch.device("cuda"), "float32", 80 * GB).memory == 80 * GB


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_a_sharded_model_is_split_over_the_processes(lora_rank, fixed_model, data):
    options = RL.model_copy(update={"sharded": True, "beta": 0.1, "lora_rank": lora_rank})
    one, four = (
        plan_training(options, str(fixed_model), data, 0, CPU._replace(processes=processes))
        for processes in (1, 4)
    )
    sizes = [{part.name: part.bytes for part in plan.lasting} for plan in (one, four)]
    quarter = {name: -(-size // 4) for name, size in sizes[0].items()}
    assert sizes[1]["weights"] == quarter["weights"]
    whole_state = {None: quarter, 4: sizes[0]}[lora_rank]
    assert sizes[1]["optimiser state"] == whole_state["optimiser state"]
    in_search = {part.name: part.bytes for part in four.search}
    assert in_search["gathered"] == sizes[0]["weights"]
    assert "gathered" not in [part.name for part in one.search]


def test_parts_follow_the_method(fixed_model, data):
    def names(options, **changes):
        changed = options.model_copy(update=changes)
        plan = plan_training(changed, str(fixed_model), data, 0, CPU)
        return [part.name for parts in plan for part in parts]

    rl = RlOptions(prompts=8, rows_per_pass=8, group_size=4)
    update = ["optimiser state", "file and copy", "gradients", "activations", "logits", "search"]
    assert names(rl) == ["process", "weights", "reference", *update]
    assert names(rl, beta=0.0) == ["process", "weights", *update]
    preference = PreferenceOptions(batch_size=8, rows_per_pass=8)
    sft = SftOptions(batch_size=8, rows_per_pass=8)
    assert "search" not in names(sft)
    assert names(preference) == ["process", "weights", "reference", *update]


def test_a_gpu_has_no_process_and_smaller_searches(fixed_model, data):
    gpu = Target(torch.device("cuda"), "bfloat16", None)
    on_cpu, on_gpu = (
        plan_recommend(Recommend(), str(fixed_model), data, 0, target) for target in (CPU, gpu)
    )
    assert [part.name for part in on_gpu.lasting] == ["weights"]
    assert on_gpu.search[0].bytes < on_cpu.search[0].bytes


def test_rows_of_a_training_run_s_searches(fixed_model, data):
    def remark(options, memory=8 * GB, device="cuda"):
        target = Target(torch.device(device), "float32", memory)
        return plan_training(options, str(fixed_model), data, 0, target).search[0].remark

    rl = RlOptions(prompts=16, rows_per_pass=4, group_size=4)
    assert remark(rl) == "16 rows, 4 beams"  # a step's prompts at once
    assert remark(rl, memory=1e5) == "1 rows, 4 beams"  # nothing is left beside the weights
    free = rl.model_copy(update={"rollout": "unconstrained"})
    assert remark(free, memory=1e5) == "4 rows, 4 beams"
    preference = PreferenceOptions(batch_size=16, rows_per_pass=8, num_beams=4)
    assert remark(preference) == "8 rows, 4 beams"


def test_little_memory_means_fewer_rows_a_search(fixed_model, data):
    def remark(memory, **options):
        target = CPU._replace(memory=memory)
        plan = plan_recommend(Recommend(**options), str(fixed_model), data, 0, target)
        return plan.search[0].remark

    assert remark(8 * GB) == "8 rows, 50 beams"
    assert remark(1e5) == "1 rows, 50 beams"
    assert remark(1e5, batch_size=4) == "4 rows, 50 beams"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("--init", "cannot load a language model's config"),
        ("--data", "items.parquet: no such file"),
    ],
)
def test_missing_files_are_one_line(missing, message, fixed_model, data, tmp_path):
    given = {"--init": fixed_model, "--data": data} | {missing: tmp_path / "none"}
    words = [word for pair in given.items() for word in pair]
    ran = rere("plan", "sft", *words)
    assert ran.returncode == 1
    assert message in ran.stdout
    assert len(ran.stdout.splitlines()) == 1
