"""What each job of a study takes, planned in one process before they run."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from transformers import PreTrainedConfig

from rere.config.decoding import D3, Beam
from rere.config.evaluation import Recommend, applicable, spell, subfolder
from rere.config.study import Method, Study
from rere.planning.hardware import GPUS, cpu_seconds, gpu_seconds, total
from rere.planning.memory import inference_weights
from rere.planning.passes import TrainingOptions
from rere.planning.plan import (
    MeasuredPass,
    Plan,
    Target,
    Texts,
    as_dict,
    load_config,
    measure_pass,
    plan_measured,
    plan_recommend_of,
    prompt_lengths,
    start_process,
)
from rere.planning.sample import Sample
from rere.planning.work import Writing, job_work
from rere.progress import progress
from rere.training.setup import read_rows, select_part

JobOptions: TypeAlias = TrainingOptions | Recommend
Row: TypeAlias = dict[str, Any]

SEED = 0
"""Jobs of other seeds take about as much."""

MOST_GPUS = 8
"""Processes of a sharded run, at most."""
USABLE = 0.9
"""Share of a GPU's memory that a plan may fill."""


class Job(NamedTuple):
    """A training run, or an evaluation of a trained model, of any seed."""

    dataset: str
    backbone: str
    method: str
    stage: str  # sft, preference, rl, recommend or decode
    evaluation: str  # the part of the run's path, as in /rows=40; empty for training
    options: JobOptions


Tables: TypeAlias = dict[str, set[int]]
"""The tables that need a job, and of which seeds."""


def plan_study(study: Study, results: Path) -> list[Row]:
    """A row for each job of a study's tables, in plain values.

    The folder `results` has data and backbones. Raises InputError for missing or malformed files.
    """
    jobs = list_jobs(study)
    rows = []
    with progress(len(jobs), "plan", "job") as bar:
        for row in plan_jobs(jobs, results):
            rows.append(row)
            bar.update()
    return rows


def list_jobs(study: Study) -> list[tuple[Job, Tables]]:
    """The training runs and evaluations of all tables, those of a data set and backbone together.

    Baselines are left out.
    """
    found: dict[tuple[str, ...], tuple[Job, Tables]] = {}
    for table in study.tables:
        for run in study.runs(table):
            for job in jobs_of_run(study, table, run.dataset, run.backbone, run.method):
                _, tables = found.setdefault(job[:-1], (job, {}))
                tables.setdefault(table, set()).add(run.seed)
    return [found[key] for key in sorted(found)]


def jobs_of_run(study: Study, table: str, dataset: str, backbone: str, name: str) -> Iterator[Job]:
    """Yield the evaluation of a method in a table, its training and that of what it starts from."""
    method = study.methods[name]
    if method.stage == "baseline":
        return
    stage, part, options = evaluation_job(method, study.evaluation_of(table))
    yield Job(dataset, backbone, name, stage, part, options)
    start: str | None = name
    while start is not None:
        method = study.methods[start]
        training = study.options_of(start, backbone)
        if isinstance(training, TrainingOptions):
            yield Job(dataset, backbone, start, method.stage, "", training)
        start = method.init


def evaluation_job(method: Method, evaluation: Recommend) -> tuple[str, str, Recommend]:
    """The stage, part of the path and search of a method's evaluation.

    D3 takes what a search with as many beams takes. Of BIGRec only the writing of titles counts.
    """
    part = subfolder(spell(applicable(evaluation, method.stage)))
    if method.decode is None:
        return "recommend", part, evaluation
    match method.decode:
        case Beam():
            changes: Row = method.decode.model_dump(exclude={"algorithm"})
        case D3():
            changes = {"num_beams": method.decode.num_beams}
        case _:
            alone = evaluation.model_dump() | {"num_beams": 1, "scoring": "vocabulary"}
            return "decode", part, Writing(**alone)
    return "decode", part, evaluation.model_copy(update=changes)


def plan_jobs(jobs: list[tuple[Job, Tables]], results: Path) -> Iterator[Row]:
    """Yield the row of each job; titles are read once for jobs of a data set and backbone."""
    start_process(Target(torch.device("cpu"), "float32", None))
    last: tuple[str, str] | None = None
    for job, tables in jobs:
        model, data = results / "backbones" / job.backbone, results / "data" / job.dataset
        if last != (job.dataset, job.backbone):
            last, config = (job.dataset, job.backbone), load_config(str(model))
            sample = Sample(config, Texts.read(str(model), data), data, SEED)
        seeds = {table: sorted(seeds) for table, seeds in tables.items()}
        yield {"tables": seeds, **plan_job(job, config, sample)}


def plan_job(job: Job, config: PreTrainedConfig, sample: Sample) -> Row:
    """A job's names; what a seed of it computes, and on each machine its memory and seconds.

    `weights` and `checkpoint` are bytes, the former in float32. A model that was trained before has
    the shape of its backbone, `config`. The seconds are those of one GPU; of a run that needs
    several, the sum of all. Where a job does not fit, it has 0 `processes` and no seconds.
    """
    work = job_work(job.options, sample)
    shared, apart = total(work, sample.shape), total(work, sample.shape, is_shared=False)
    weights = inference_weights(config, "float32")
    row: Row = {
        **job._asdict(),
        "tokens": round(sum(each.tokens for each in work)),
        "operations": round(shared.total),
        "operations_without_sharing": round(apart.total),
        "weights": weights,
        "checkpoint": 0,
    }
    options: JobOptions = row.pop("options")

    planned = partial(plan_on, options, config, sample)
    here = Target.choose(torch.device("cpu"), options.dtype, None)
    plan = planned(here)
    if not isinstance(options, Recommend):
        row["checkpoint"] = weights + optimizer_state(plan)
    row["cpu"] = machine(plan, here, cpu_seconds(work, sample))
    row["gpus"] = {}
    for name, gpu in GPUS.items():
        target = Target.choose(torch.device("cuda"), options.dtype, gpu.memory)
        plan = planned(target)
        if not isinstance(options, Recommend) and options.sharded:
            while not fits_into(plan, target) and target.processes < MOST_GPUS:
                target = target._replace(processes=2 * target.processes)
                plan = planned(target)
        seconds = gpu_seconds(work, sample.shape, gpu, target.dtype)
        row["gpus"][name] = machine(plan, target, seconds)
    return row


def plan_on(options: JobOptions, config: PreTrainedConfig, sample: Sample, target: Target) -> Plan:
    """The memory of a job on a target."""
    if isinstance(options, Recommend):
        lengths = sample.remember(
            ("prompts", options.rows),
            lambda: prompt_lengths(sample.texts, sample.data, options.rows, SEED),
        )
        return plan_recommend_of(options, config, sample.texts, lengths, target)
    every = sample.remember("train rows", lambda: read_rows(sample.data, "train"))

    def measure() -> MeasuredPass:
        rows = select_part(every, options, sample.data, min_rows=options.rows_per_pass)
        return measure_pass(options, config, sample.texts, rows, SEED, target)

    # Which GPU it is changes nothing, nor do most options.
    sizes = options.model_dump_json(exclude={"learning_rate", "reward"})
    measured = sample.remember((sizes, target.device, target.dtype), measure)
    return plan_measured(options, config, sample.texts, measured, target)


def machine(plan: Plan, target: Target, seconds: float) -> Row:
    """A job's memory on a machine and, if it fits, its processes and seconds."""
    fits = fits_into(plan, target)
    return {
        **as_dict(plan, target),
        "dtype": target.dtype,
        "processes": target.processes if fits else 0,
        "seconds": round(seconds, 1) if fits else None,
    }


def fits_into(plan: Plan, target: Target) -> bool:
    """Whether a plan leaves a GPU the memory that CUDA and torch's allocator take."""
    share = USABLE if target.device.type == "cuda" else 1.0
    return target.memory is None or plan.peak <= share * target.memory


def optimizer_state(plan: Plan) -> int:
    """Bytes of a training run's optimiser, the same on each device."""
    return sum(part.bytes for part in plan.lasting if part.name == "optimiser state")
