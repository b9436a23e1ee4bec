"""The fault matrix: each stage is run on harmed inputs, and how it ends is counted.

`python tests/faults/matrix.py docs/faults.md` makes a small study, harms one input of one stage at
a time, and writes the counts as a page. A run ends well in one of two ways:

* refused: exit status not 0, one line on standard error, nothing written;
* the same: exit status 0 and the outputs of the run on unharmed inputs, byte for byte.

Everything else is listed below the table.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import polars as pl

sys.path.append(str(Path(__file__).parent.parent))
from harms import file_faults
from snakemake_runs import write_raw

# Processes start from one that has imported what the stages need, in a tenth of a second.
FORK = get_context("forkserver")
FORK.set_forkserver_preload(
    [
        "rere.cli",
        "rere.training.rl",
        "rere.training.sft",
        "rere.training.preference",
        "rere.evaluation.decode",
        "rere.evaluation.recommend",
        "rere.reporting.figures",
        "rere.reporting.curves",
        "rere.reporting.tables",
        "rere.reporting.explorer",
        "rere.baselines.baseline",
    ]
)
LIMIT_SECONDS = 120
MACHINE_DEPENDENT = {"run.json", "log.jsonl"}
"""Outputs with times and memory, which are not compared."""


class Stage(NamedTuple):
    """A stage of the small study. Paths are relative to its folder."""

    column: str  # of the page's table
    command: str  # {output} stands for the output
    inputs: tuple[str, ...]
    output: str  # a file or folder

    @property
    def name(self) -> str:
        return self.command.partition(" --")[0]


DATA = ("small/items.parquet", "small/train.parquet", "small/valid.parquet")
TEST = ("small/items.parquet", "small/test.parquet")
MODEL = ("model.safetensors", "config.json", "tokenizer.json")
BACKBONE = tuple(f"backbone/{name}" for name in MODEL)
SFT = tuple(f"runs/small/tiny/sft/seed0/model/{name}" for name in (*MODEL, "catalogue.safetensors"))
SHORT = "--rows-per-pass 2 --validations 1 --valid-rows 8"
STAGES = (
    Stage(
        "preprocess",
        "preprocess ml-100k --raw raw --core 2 --max-history 4 --output {output}",
        ("raw/u.data", "raw/u.item"),
        "small",
    ),
    Stage(
        "preprocess",
        "preprocess table --raw tables --core 2 --events events.csv --items items.csv "
        "--output {output}",
        ("tables/events.csv", "tables/items.csv"),
        "data_of_tables",
    ),
    Stage(
        "preprocess",
        "preprocess splits --raw small --output {output}",
        (*DATA, "small/test.parquet"),
        "data_of_splits",
    ),
    Stage(
        "backbone",
        "backbone tiny --corpus small --vocab-size 400 --hidden-size 16 --num-layers 1 "
        "--output {output}",
        DATA[:2],
        "backbone",
    ),
    Stage(
        "backbone",
        "backbone pretrained --model backbone --output {output}",
        BACKBONE,
        "pretrained",
    ),
    Stage(
        "train",
        f"sft --init backbone --data small --batch-size 4 --epochs 0.05 {SHORT} "
        "--output {output}",
        (*DATA, *BACKBONE),
        "runs/small/tiny/sft/seed0",
    ),
    Stage(
        "train",
        "preference --init runs/small/tiny/sft/seed0/model --data small --steps 2 --batch-size 4 "
        f"--num-beams 4 {SHORT} --output {{output}}",
        (*DATA, *SFT[:3]),
        "runs/small/tiny/s_dpo/seed0",
    ),
    Stage(
        "train",
        "rl --init runs/small/tiny/sft/seed0/model --data small --steps 2 --prompts 4 "
        f"--group-size 4 {SHORT} --output {{output}}",
        (*DATA, *SFT[:3]),
        "runs/small/tiny/rere/seed0",
    ),
    Stage(
        "baseline",
        "baseline item_knn --data small --rows 20 --output {output}",
        (DATA[0], DATA[1], TEST[1]),
        "runs/small/none/item_knn/seed0",
    ),
    Stage(
        "baseline",
        "baseline sasrec --data small --rows 20 --hidden-size 8 --epochs 1 --output {output}",
        (*DATA, TEST[1]),
        "runs/small/none/sasrec/seed0",
    ),
    Stage(
        "predict",
        "recommend --model runs/small/tiny/sft/seed0/model --data small --rows 20 --num-beams 8 "
        "--output {output}",
        (*TEST, *SFT),
        "runs/small/tiny/sft/seed0/predictions.parquet",
    ),
    Stage(
        "predict",
        "decode bigrec --model runs/small/tiny/sft/seed0/model --data small --rows 20 "
        "--output {output}",
        (*TEST, *SFT[:3]),
        "runs/small/tiny/bigrec/seed0",
    ),
    Stage(
        "metrics",
        "metrics --predictions runs/small/tiny/sft/seed0/predictions.parquet --data small "
        "--dataset small --backbone tiny --method sft --seed 0 --output {output}",
        (*TEST, "runs/small/tiny/sft/seed0/predictions.parquet"),
        "runs/small/tiny/sft/seed0/metrics.json",
    ),
    Stage(
        "table",
        "table --runs runs/small/tiny/sft/seed0 --data small --output {output}",
        (
            *TEST,
            *(
                f"runs/small/tiny/sft/seed0/{name}"
                for name in ("predictions.parquet", "metrics.json", "run.json")
            ),
        ),
        "tables/main.csv",
    ),
    Stage(
        "table",
        "explorer --runs runs/small/tiny/sft/seed0 --data small --output {output}",
        (
            *TEST,
            "small/users.parquet",
            "small/train.parquet",
            *(
                f"runs/small/tiny/sft/seed0/{name}"
                for name in ("predictions.parquet", "metrics.json", "run.json")
            ),
        ),
        "tables/main.explorer.html",
    ),
    Stage(
        "figure",
        "figure --table tables/main.csv --output {output}",
        ("tables/main.csv",),
        "main.png",
    ),
    Stage(
        "figure",
        "curves --runs runs/small/tiny/rere/seed0 --output {output}",
        ("runs/small/tiny/rere/seed0/log.jsonl",),
        "curves.png",
    ),
)

# --------------------------------------------------------------------------------- running stages


class Ending(NamedTuple):
    """How a run ended."""

    status: int
    stderr: str


def start(folder: Path, stage: Stage, output: str):
    """Start a stage in a process of its own; standard error goes to {folder}/stderr."""
    process = FORK.Process(target=run, args=(folder, stage.command.format(output=output).split()))
    process.start()
    return process


def run(folder: Path, arguments: list[str]) -> None:
    """Run `rere` with these arguments in this process, which ends with its status."""
    os.chdir(folder)
    with open("stderr", "w") as stderr, open("stdout", "w") as stdout:
        os.dup2(stderr.fileno(), 2)
        os.dup2(stdout.fileno(), 1)
    sys.argv = ["rere", *arguments]
    from rere.cli import main

    main()


def finish(process, folder: Path) -> Ending:
    process.join(LIMIT_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return Ending(-1, f"still running after {LIMIT_SECONDS} seconds")
    return Ending(process.exitcode, (folder / "stderr").read_text(errors="replace"))


def judge(ending: Ending, output: Path, unharmed: Path) -> str | None:
    """What is wrong with the end of a run; None if nothing is."""
    if ending.status == 0:
        return None if same(output, unharmed) else "another result, status 0"
    lines = messages(ending.stderr)
    if "Traceback" in ending.stderr or len(lines) != 1:
        return f"{len(lines)} lines, status {ending.status}: {' / '.join(lines[-1:])[:120]}"
    if output.is_dir() and (names := {path.name for path in output.iterdir()} - {"checkpoints"}):
        return f"left {', '.join(sorted(names))}"
    return f"left {output.name}" if output.is_file() else None


def messages(stderr: str) -> list[str]:
    """Lines on standard error, without progress and without the log's warnings."""
    lines = [line.rpartition("\r")[2] for line in stderr.splitlines()]
    return [
        line for line in lines if line.startswith("rere ") or "Error" in line or "  File" in line
    ]


def same(output: Path, unharmed: Path) -> bool:
    """Whether two files or folders have the same bytes, except for MACHINE_DEPENDENT files."""
    if unharmed.is_file():
        return output.is_file() and output.read_bytes() == unharmed.read_bytes()
    files = [path for path in unharmed.rglob("*") if path.is_file()]
    return all(
        (output / path.relative_to(unharmed)).is_file()
        and (output / path.relative_to(unharmed)).read_bytes() == path.read_bytes()
        for path in files
        if path.name not in MACHINE_DEPENDENT
    )


# ----------------------------------------------------------------------------------- the matrix


class Result(NamedTuple):
    """One run of the matrix."""

    fault: str
    stage: Stage
    where: str
    problem: str | None

    def describe(self) -> tuple[str, ...]:
        return self.fault, self.stage.name, self.where, (self.problem or "").replace("|", "")


def make_study(folder: Path) -> None:
    """Run every stage on unharmed inputs."""
    write_raw(folder / "raw")
    (folder / "tables").mkdir()
    events = pl.DataFrame(
        [
            (f"u{user}", f"i{(user + step) % 20}", 10**9 + step)
            for user in range(30)
            for step in range(8)
        ],
        schema=["user", "item", "timestamp"],
        orient="row",
    )
    events.write_csv(folder / "tables" / "events.csv")
    items = pl.DataFrame(
        [(f"i{item}", f"Thing {item}") for item in range(20)],
        schema=["item", "title"],
        orient="row",
    )
    items.write_csv(folder / "tables" / "items.csv")
    for stage in STAGES:
        ending = finish(start(folder, stage, stage.output), folder)
        if ending.status:
            raise SystemExit(f"{stage.command}\n{ending.stderr}")
        copy = shutil.copytree if (folder / stage.output).is_dir() else shutil.copyfile
        expected(folder, stage).parent.mkdir(parents=True, exist_ok=True)
        copy(folder / stage.output, expected(folder, stage))


def expected(folder: Path, stage: Stage) -> Path:
    """Where the output of a stage on unharmed inputs is kept, apart from those of the others."""
    return folder / "expected" / str(STAGES.index(stage)) / Path(stage.output).name


def harmed_files(folder: Path, seed: int) -> Iterator[Result]:
    """Yield the result of each fault of each input of each stage."""
    for stage in STAGES:
        for path in stage.inputs:
            for fault, harm in file_faults(path).items():
                if stage.name == "preprocess splits" and fault == "parquet: a row twice":
                    continue  # a user may choose twice; items are counted in other stages
                with spared(folder / path):
                    harm(folder / path, random.Random(seed))
                    problem = outcome(folder, stage)
                yield Result(fault, stage, path, problem)


@contextmanager
def spared(path: Path) -> Iterator[None]:
    """Put a file back after the block."""
    content = path.read_bytes()
    try:
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def outcome(folder: Path, stage: Stage) -> str | None:
    """Run a stage into a new output; return what is wrong with its end."""
    output = folder / "new" / Path(stage.output).name
    ending = finish(start(folder, stage, f"new/{output.name}"), folder)
    problem = judge(ending, output, expected(folder, stage))
    shutil.rmtree(folder / "new", ignore_errors=True)
    return problem


def harmed_outputs(folder: Path) -> Iterator[Result]:
    """Yield the result of each stage whose output cannot be written."""
    for stage in STAGES:
        name = Path(stage.output).name
        (folder / "new").mkdir()
        is_file = (folder / stage.output).is_file()
        blocked = folder / "new" / name if not is_file else folder / "new"
        if is_file:
            (blocked / name).mkdir()
        else:
            blocked.write_text("a file")
        ending = finish(start(folder, stage, f"new/{name}"), folder)
        lines = messages(ending.stderr)
        problem = None if ending.status and len(lines) == 1 else f"{lines[-1:]}, {ending.status}"
        shutil.rmtree(folder / "new")
        yield Result("output: the other of file and folder is there", stage, name, problem)

        with full_disk(folder / "new") as is_mounted:
            if is_mounted:
                ending = finish(start(folder, stage, f"new/disk/{name}"), folder)
                output = folder / "new" / "disk" / name
                yield Result(
                    "output: the disk is full",
                    stage,
                    name,
                    judge(ending, output, expected(folder, stage)),
                )
        shutil.rmtree(folder / "new")


@contextmanager
def full_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of 16 kB on {folder}/disk; False where this process may not mount."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    is_mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(disk)], check=True)


def killed(folder: Path, seed: int, times: int = 4) -> Iterator[Result]:
    """Yield the result of each stage that is killed at random moments and then run again."""
    generator = random.Random(seed)
    for stage in STAGES:
        name = Path(stage.output).name
        begun = time.perf_counter()
        finish(start(folder, stage, f"new/{name}"), folder)
        seconds = time.perf_counter() - begun
        shutil.rmtree(folder / "new")
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            for _ in range(times):
                process = start(folder, stage, f"new/{name}")
                time.sleep(seconds * generator.random())
                with suppress(ProcessLookupError):  # it may have ended
                    os.kill(process.pid, number)
                ending = finish(process, folder)
                problem = None
                # Before and after the command, Python ends by the signal, or with 1 at SIGINT.
                said = messages(ending.stderr)
                outside = 1 if number == signal.SIGINT and not said else -number
                if ending.status not in (0, 128 + number, outside):
                    problem = f"status {ending.status}: {' / '.join(said)[-80:]}"
                again = finish(start(folder, stage, f"new/{name}"), folder)
                problem = problem or judge(again, folder / "new" / name, expected(folder, stage))
                hidden = [path.name for path in (folder / "new").rglob(".*") if path.is_dir()]
                problem = problem or (f"left {hidden}" if hidden else None)
                shutil.rmtree(folder / "new")
                label = f"{number.name} at a random moment, then run again"
                yield Result(f"process: {label}", stage, name, problem)


def page(results: list[Result], seconds: float) -> str:
    """The page of the documentation."""
    columns = list(dict.fromkeys(stage.column for stage in STAGES))
    tried: Counter = Counter((each.fault, each.stage.column) for each in results)
    well: Counter = Counter(
        (each.fault, each.stage.column) for each in results if each.problem is None
    )
    lines = [
        "# Faults",
        "",
        "What happens when an input is harmed, a disk is full or a process is killed. "
        "`make faults` makes a small study, harms one file of one stage at a time, runs the "
        "stage, and writes this page.",
        "",
        "A run ends well if it is refused or gives the same result. Refused: exit status not 0, "
        "one line that names what is wrong, and nothing written. The same: exit status 0, and the "
        "outputs equal those of unharmed inputs byte for byte. Cells are: ended well / tried.",
        "",
        "| column | stages |",
        "|---|---|",
        *(
            f"| {name} | {', '.join(f'`{s.name}`' for s in STAGES if s.column == name)} |"
            for name in columns
        ),
        "",
        f"In all {sum(well.values()):,} of {sum(tried.values()):,} runs ended well, in "
        f"{seconds / 60:.0f} minutes.",
        "",
        f"| fault | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for fault in dict.fromkeys(each.fault for each in results):
        cells = [
            f"{well[fault, name]}/{tried[fault, name]}" if tried[fault, name] else ""
            for name in columns
        ]
        lines.append(f"| {fault} | {' | '.join(cells)} |")
    others = [each for each in results if each.problem is not None]
    if others:
        lines += [
            "",
            "## Runs that did not end well",
            "",
            "| fault | stage | file | what happened |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {each.fault} | {each.stage.name} | {each.where} | {each.problem.replace('|', '')} |"
            for each in others
        ]
    if not any("full" in each.fault for each in results):
        lines += ["", "Full disks were not tried: this process may not mount one."]
    return "\n".join(lines) + "\n"


def main() -> None:
    begun = time.perf_counter()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_study(folder)
        results = []
        for each in (harmed_files(folder, 0), harmed_outputs(folder), killed(folder, 0)):
            for result in each:
                results.append(result)
                if result.problem:
                    print(
                        result.fault,
                        "|",
                        result.stage.name,
                        "|",
                        result.where,
                        "|",
                        result.problem,
                        flush=True,
                    )
    Path(sys.argv[1]).write_text(page(results, time.perf_counter() - begun))


if __name__ == "__main__":
    main()
