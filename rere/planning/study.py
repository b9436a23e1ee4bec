"""What each job of a study takes, planned in one process before they run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from rere.config.decoding import D3
from rere.config.evaluation import Recommend, applicable, spell, subfolder
from rere.config.study import Method, Study
from rere.files import write_json
from rere.planning.memory import inference_weights
from rere.planning.passes import TrainingOptions
from rere.planning.plan import (
    Plan,
    Target,
    Texts,
    as_dict,
    load_config,
    plan_recommend,
    plan_training,
)
from rere.progress import progress

JobOptions: TypeAlias = TrainingOptions | Recommend
Row: TypeAlias = dict[str, Any]

SEED = 0
"""Jobs of other seeds take about as much."""


class Job(NamedTuple):
    """A training run, or an evaluation of a trained model, of any seed."""

    dataset: str
    backbone: str
    method: str
    stage: str  # sft, preference, rl, recommend or decode
    evaluation: str  # the part of the run's path, as in /rows=40; empty for training
    options: JobOptions


def plan_study(study: Study, results: Path, gpu_memory: float, output: Path) -> None:
    """Write a row for each job of a study's tables, as JSON.

    The folder `results` has data and backbones. `gpu_memory` are bytes. Raises InputError for
    missing or malformed files.
    """
    jobs = list_jobs(study)
    rows = []
    with progress(len(jobs), "plan", "job") as bar:
        for row in plan_jobs(jobs, results, gpu_memory):
            rows.append(row)
            bar.update()
    write_json(output, {"jobs": rows})


def list_jobs(study: Study) -> list[Job]:
    """The training runs and evaluations of all tables, those of a data set and backbone together.

    Baselines are left out.
    """
    found: dict[tuple[str, ...], Job] = {}
    for table in study.tables:
        for run in study.runs(table):
            method = study.methods[run.method]
            if method.stage == "baseline":
                continue
            job = evaluation_job(method, study.evaluation_of(table))
            jobs = [Job(run.dataset, run.backbone, run.method, *job)]
            name: str | None = run.method
            while name is not None:
                method = study.methods[name]
                options = study.options_of(name, run.backbone)
                if isinstance(options, TrainingOptions):
                    jobs.append(Job(run.dataset, run.backbone, name, method.stage, "", options))
                name = method.init
            found |= {job[:-1]: job for job in jobs}
    return [found[key] for key in sorted(found)]


def evaluation_job(method: Method, evaluation: Recommend) -> tuple[str, str, Recommend]:
    """The stage, part of the path and search of a method's evaluation.

    D3 takes what a search with as many beams takes. Of BIGRec only the writing of titles counts.
    """
    part = subfolder(spell(applicable(evaluation, method.stage)))
    if method.decode is None:
        return "recommend", part, evaluation
    if isinstance(method.decode, D3):
        changes: Row = {"num_beams": method.decode.num_beams}
    else:
        changes = {"num_beams": 1, "scoring": "vocabulary"}
    return "decode", part, evaluation.model_copy(update=changes)


def plan_jobs(jobs: list[Job], results: Path, gpu_memory: float) -> Iterator[Row]:
    """Yield the row of each job; titles are read once for jobs of a data set and backbone."""
    last: tuple[str, str] | None = None
    for job in jobs:
        model, data = results / "backbones" / job.backbone, results / "data" / job.dataset
        if last != (job.dataset, job.backbone):
            last, texts = (job.dataset, job.backbone), Texts.read(str(model), data)
        yield plan_job(job, str(model), data, texts, gpu_memory)


def plan_job(job: Job, model: str, data: Path, texts: Texts, gpu_memory: float) -> Row:
    """A job's names, and bytes: of its float32 weights, a checkpoint, and on a CPU and a GPU.

    A model that was trained before has the shape of its backbone, `model`.
    """
    weights = inference_weights(load_config(model), "float32")
    row: Row = {**job._asdict(), "weights": weights, "checkpoint": 0}
    options: JobOptions = row.pop("options")
    for device, memory in (("cpu", None), ("cuda", gpu_memory)):
        target = Target.choose(torch.device(device), options.dtype, memory)
        if isinstance(options, Recommend):
            plan = plan_recommend(options, model, data, SEED, target, texts)
        else:
            plan = plan_training(options, model, data, SEED, target, texts)
            row["checkpoint"] = weights + optimizer_state(plan)
        row[device] = as_dict(plan, target) | {"dtype": target.dtype}
    return row


def optimizer_state(plan: Plan) -> int:
    """Bytes of a training run's optimiser, the same on each device."""
    return sum(part.bytes for part in plan.lasting if part.name == "optimiser state")
