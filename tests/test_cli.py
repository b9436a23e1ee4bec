"""The command line: help, options, errors and progress."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen
from forks import STAGE_FORKS
from hypothesis import given, settings
from hypothesis import strategies as st

from rere import Recommender
from rere.cli import first_paragraph, is_fixed, parse
from rere.config.claims import Claim, Compared
from rere.config.evaluation import METRICS
from rere.config.options import NAME, flag, flags
from rere.stages import STAGES


def rere(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rere", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def error_line(*arguments: str | Path, status: int) -> str:
    """The one line that a failing command prints, on standard error only."""
    done = rere(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.rstrip("\n")


def usage_error(capsys: pytest.CaptureFixture[str], stage: str, arguments: str) -> str:
    """The one line that the parser of a stage prints, without starting a process."""
    with pytest.raises(SystemExit) as stop:
        parse(stage, arguments.split())
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.rstrip("\n")


# ----------------------------------------------------------------------------------------- help


def test_help_is_fast_and_does_not_import_torch():
    code = (
        "import sys, time; sys.argv = ['rere', '--help']\n"
        "from rere.cli import main; main()\n"
        "assert not {'torch', 'transformers', 'numpy', 'polars'} & set(sys.modules)\n"
        "assert time.process_time() < 1"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for stage, command in STAGES.items():
        assert f"  {stage} " in done.stdout
        assert first_paragraph(command) in done.stdout


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_the_stages(arguments):
    done = rere(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: rere STAGE [OPTIONS]\n")


def test_a_closed_pipe_ends_help_silently():
    command = [sys.executable, "-m", "rere", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 128 + signal.SIGPIPE)


def test_help_of_stages_that_share_their_first_word():
    done = rere("baseline", "--help")
    assert done.returncode == 0
    assert [row.split("  ")[1] for row in done.stdout.splitlines() if row.startswith("  ")] == [
        "baseline popularity",
        "baseline repeat_last",
        "baseline item_knn",
        "baseline gru4rec",
        "baseline caser",
        "baseline sasrec",
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_help_explains_every_option(stage, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stop:
        parse(stage, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: rere {stage} [OPTIONS]\n\n{first_paragraph(STAGES[stage])}")
    required = text.partition("\noptions:")[0]
    for name, field in STAGES[stage].model_fields.items():
        assert (f"  {flag(name)} " in text) != is_fixed(field)
        assert (f"  {flag(name)} " in required) == field.is_required()
        assert is_fixed(field) or field.description in text


def test_help_shows_defaults_and_choices(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parse("rl", ["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "--dtype {auto,float32,bfloat16} Precision of forward" in words
    assert "--reward STR [STR ...] Rewards, added up. rule: 1" in words
    assert "a reward has a weight. [rule ranking]" in words
    assert "--clip FLOAT [FLOAT ...]" in words
    assert "decay to 0. [1e-05]" in words


# -------------------------------------------------------------------------------------- options

SHARED = {
    # Options that depend on each other: these values are valid in any combination.
    "hidden_size": st.integers(1, 9).map(lambda n: 24 * n),
    "num_heads": st.sampled_from([1, 2, 3, 4, 6, 12]),
    "rows_per_pass": st.sampled_from([1, 2, 4]),
    "batch_size": st.integers(1, 99).map(lambda n: 4 * n),
    "prompts": st.integers(1, 99).map(lambda n: 4 * n),
    "models": st.just([Path(__file__).parent] * 2),
    "names": st.just(["wide", "tiny sft"]),
    "backbones": st.just([Path(__file__).parent]),
    "starts": st.just({"rere": ["sft"], "d3": ["sft", "sasrec"]}),
    "axes": st.just({"Objective, ±": ["grpo", "dapo"]}),
    "test_rows": st.just([48, 200]),
    "sync_interval": st.none(),
    "steps": st.integers(1, 99).map(lambda n: 10 * n),
    "negatives": st.none() | st.just(1),
    "iterations": st.none(),
    "num_beams": st.integers(2, 99),
    "lora_rank": st.none(),
    "save": st.just("merged"),
    "sharded": st.just(False),
    "start": st.none() | st.dates(max_value=date(1999, 12, 31)),
    "end": st.none() | st.dates(min_value=date(2000, 1, 1)),
    "rollout": st.just("beam"),
    "reward": st.sampled_from([["rule"], ["rule", "semantic=0.5"], ["my.own:reward"]]),
    "embeddings": st.none(),
    "factors": st.none(),
    "alpha": st.just(1.0),
    "advantage": st.sampled_from(["grpo", "dr_grpo", "rloo"]),
    "objective": st.sampled_from(["grpo", "dapo", "gspo", "dr_grpo"]),
    "clip": st.none() | st.just([0.2, 0.28]),
    "train_part": st.just([0.25, 1.0]),
    "kl": st.sampled_from(["k2", "k3"]),
    "encoding": st.sampled_from(["utf-8", "latin-1"]),
    "metrics": st.lists(st.sampled_from(METRICS), min_size=1, unique=True),
}


COMPARED = Compared(table="main", method="rere", than=["sft", "sasrec"], datasets=["ml-100k"])


def values(name: str, annotation: Any, limits: tuple[Any, ...]) -> st.SearchStrategy:
    """Any valid value of an option."""
    found = {type(limit): limit for limit in limits}
    if name in SHARED:
        return SHARED[name]
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return values(name, inner, tuple(m for f in metadata for m in getattr(f, "metadata", [f])))
    if name == "claims":
        return st.just({"mine": Claim(sentence="It's {better}: ±.", comparisons=[COMPARED])})
    if name == "runs" and annotation == list[str]:
        return st.lists(st.just("main:results/runs/a/b/c/seed0"), max_size=2)
    if get_origin(annotation) is list:
        least = found[MinLen].min_length if MinLen in found else 0
        return st.lists(values(name, get_args(annotation)[0], ()), min_size=least, max_size=3)
    if name == "labels":
        text = st.from_regex(r"[A-Za-z0-9][ -~]{0,9}", fullmatch=True)
        return st.dictionaries(st.from_regex(NAME, fullmatch=True), text, max_size=3)
    if type(None) in get_args(annotation):
        inner = values(name, get_args(annotation)[0], limits)
        return st.none() | inner.filter(lambda value: value != "None")
    if annotation is int:
        return st.integers(
            found[Ge].ge if Ge in found else 0, found[Le].le if Le in found else 2**31
        )
    if annotation is float:
        low, high = found.get(Ge, found.get(Gt)), found.get(Le, found.get(Lt))
        return st.floats(
            low.ge if Ge in found else low.gt,
            None if high is None else high.le if Le in found else high.lt,
            exclude_min=Gt in found,
            exclude_max=Lt in found,
            allow_infinity=False,
            allow_nan=False,
        )
    if annotation is bool:
        return st.booleans()
    if annotation is Path:
        is_file = any(getattr(limit, "path_type", None) == "file" for limit in limits)
        return st.just(Path(__file__) if is_file else Path(__file__).parent)
    patterns = [each.pattern for each in limits if getattr(each, "pattern", None)]
    if annotation is str and patterns:
        return st.from_regex(patterns[0], fullmatch=True).filter(lambda name: len(name) <= 100)
    assert annotation is str, annotation
    return st.from_regex(r"[^\s\0-][^\s\0]{0,9}", fullmatch=True)


@pytest.mark.parametrize("stage", STAGES)
@settings(deadline=None)
@given(data=st.data())
def test_parsing_flags_restores_the_options(stage, data):
    fields = {n: f for n, f in STAGES[stage].model_fields.items() if not is_fixed(f)}
    drawn = {n: data.draw(values(n, f.annotation, tuple(f.metadata))) for n, f in fields.items()}
    if "steps" in fields and "epochs" in fields:
        drawn["epochs"] = None  # one of them is given
    command = STAGES[stage](**drawn)
    fixed = tuple(STAGES[stage].model_fields.keys() - fields.keys())
    assert parse(stage, flags(command, skip=fixed)) == command


def test_an_option_and_its_value_may_be_joined_by_an_equals_sign():
    command = parse("schema", [])
    assert flags(command) == []
    command = parse("figure", ["--table=a.csv", "--output", "b.pdf", "c.png"])
    assert (command.table, command.output) == (Path("a.csv"), [Path("b.pdf"), Path("c.png")])


def test_the_text_none_is_none_for_optional_options():
    arguments = f"--model {Path(__file__).parent} --data d --output p --rows None".split()
    assert parse("recommend", arguments).rows is None
    assert parse("backbone pretrained", ["--model", "None", "--output", "p"]).model == "None"


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("stf --init a", "rere: unknown stage stf; did you mean sft?"),
        ("baseline sasrek", "rere: unknown stage baseline sasrek; did you mean baseline sasrec?"),
        ("backbone --output x", "rere: unknown stage backbone; did you mean backbone tiny?"),
        ("xyz", "rere: unknown stage xyz; see rere --help"),
        ("--version", "rere: unknown stage --version; see rere --help"),
    ],
)
def test_an_unknown_stage(arguments, message):
    assert error_line(*arguments.split(), status=2) == message


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("sft", "--dta x", "unknown option --dta; did you mean --data?"),
        ("sft", "--valid_rows 1", "unknown option --valid_rows; did you mean --valid-rows?"),
        ("sft", "--epoch 1", "unknown option --epoch; did you mean --epochs?"),
        ("sft", "--xyz", "unknown option --xyz; see rere sft --help"),
        ("sft", "model --data x", "unknown option model; see rere sft --help"),
        (
            "backbone tiny",
            "--source tiny",
            "unknown option --source; see rere backbone tiny --help",
        ),
        ("sft", "", "missing --init, --data, --output"),
        ("sft", "--data x --output", "--output: expected one argument"),
        ("rl", "--reward --data x", "--reward: expected at least one argument"),
        ("sft", "--epochs abc", "--epochs: input should be a valid number, not 'abc'"),
        ("sft", "--epochs nan", "--epochs: input should be a finite number, not 'nan'"),
        ("rl", "--steps 1.5", "--steps: input should be a valid integer, not '1.5'"),
        ("rl", "--steps 0", "--steps: input should be greater than or equal to 1, not '0'"),
        (
            "rl",
            "--dtype f16",
            "--dtype: input should be 'auto', 'float32' or 'bfloat16', not 'f16'",
        ),
        (
            "rl",
            "--reward rul",
            "--reward: there is no rul; did you mean rule? (your own is module:function)",
        ),
        ("rl", "--reward rule=x", "--reward: rule=x: 'x' is not a weight; write rule=0.5"),
        ("rl", "--reward collaborative", "the collaborative reward and --factors need each other"),
        ("rl", "--factors f", "the collaborative reward and --factors need each other"),
        ("sft", "--train-part 0.8", "--train-part: takes two fractions, 0 <= start < end <= 1"),
        ("sft", "--train-part 0.8 0.2", "--train-part: takes two fractions, 0 <= start < end <= 1"),
        ("rl", "--clip 0.2", "clip takes two numbers above 0, the first at most 1"),
        ("rl", "--prompts 9", "prompts must be a multiple of rows_per_pass"),
        ("rl", "--init nowhere", "--init: there is no folder nowhere"),
        ("recommend", "--top 3", "--top is an option of rere recommend --history"),
        ("recommend --history", "--history A --data=x", "--data=x is an option of rere recommend"),
        ("recommend --history", "--history", "--history: expected at least one argument"),
        (
            "recommend --history",
            "--history A --top 0",
            "--top: input should be greater than or equal to 1, not '0'",
        ),
        (
            "rl",
            "--steps x --seed -1",
            "--steps: input should be a valid integer, not 'x'; "
            "--seed: input should be greater than or equal to 0, not '-1'",
        ),
    ],
)
def test_wrong_options(stage, arguments, message, capsys):
    if arguments:
        fields = STAGES[stage].model_fields.items()
        needed = {f"--{name}" for name, field in fields if field.is_required()}
        required = needed - set(arguments.split())
        arguments += "".join(f" {flag} ." for flag in sorted(required))
    assert usage_error(capsys, stage, arguments) == f"rere {stage}: {message}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--model .",
            "rere recommend: missing --data, --output; there is also rere recommend --history and "
            "rere recommend --histories",
        ),
        (
            "--history A",
            "rere recommend --history: missing --model; there is also rere recommend and "
            "rere recommend --histories",
        ),
        (
            "--model . --data . --output p --history A",
            "rere recommend --history: --data is an option of rere recommend",
        ),
        (
            "--model . --history=A --xyz",
            "rere recommend --history: unknown option --xyz; see rere recommend --history --help",
        ),
    ],
)
def test_the_flag_history_selects_the_other_form_of_recommend(arguments, message):
    assert error_line("recommend", *arguments.split(), status=2) == message


@pytest.mark.parametrize("order", [["--history", "--help"], ["--help", "--history"]])
def test_the_help_of_a_form_that_a_flag_selects(order):
    done = rere("recommend", *order)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: rere recommend --history [OPTIONS]\n")
    assert done.stdout.endswith(
        "\nSee also: rere recommend --help, rere recommend --histories --help\n"
    )
    done = rere("recommend", "--help")
    assert done.stdout.startswith("usage: rere recommend [OPTIONS]\n")
    assert done.stdout.endswith(
        "\nSee also: rere recommend --history --help, rere recommend --histories --help\n"
    )


def test_bad_input_prints_one_line(tmp_path):
    message = error_line(
        "metrics", "--predictions", tmp_path / "p", "--data", tmp_path, "--output", tmp_path / "m",
        "--dataset", "d", "--backbone", "none", "--method", "m", "--seed", 0, status=1,
    )  # fmt: skip
    assert message == (
        f"rere metrics: {tmp_path}/items.parquet: no such file; `rere preprocess` writes it"
    )


def test_an_output_that_cannot_be_written_prints_one_line(tmp_path):
    (tmp_path / "table.csv").write_text(
        "dataset,backbone,method,seeds,rows,HR@10,HR@10_low,HR@10_high,"
        "NDCG@10,NDCG@10_low,NDCG@10_high\nd,none,popularity,1,9,.1,.0,.2,.1,.0,.2\n"
    )
    (tmp_path / "file").touch()
    message = error_line(
        "figure", "--table", tmp_path / "table.csv", "--output", tmp_path / "file" / "f.pdf",
        status=1,
    )  # fmt: skip
    assert message.startswith(f"rere figure: {tmp_path}/file")
    assert message.endswith((": Not a directory", ": File exists"))


def test_a_file_instead_of_a_folder_prints_one_line(tmp_path):
    raw, output = tmp_path / "raw", tmp_path / "output"
    raw.mkdir()
    (raw / "u.data").write_text("".join(f"1\t{i}\t5\t{i}\n" for i in range(20)))
    (raw / "u.item").write_text("".join(f"{i}|Title|||{'|0' * 19}\n" for i in range(20)))
    output.touch()
    message = error_line("preprocess", "ml-100k", "--core", 1, "--raw", raw, "--output",
                   output, status=1)  # fmt: skip
    assert message == (
        f"rere preprocess ml-100k: {output}: is a file; remove it or choose another output"
    )


# -------------------------------------------------------------------------- a history of titles


def test_titles_are_printed_one_per_line(model_with_catalogue, capsys):
    history = ["Heat", "Toy Story (1995)"]
    arguments = ["--model", str(model_with_catalogue), "--history", *history, "--top", "23"]
    command = parse("recommend --history", arguments)
    command.run()
    expected = Recommender(model_with_catalogue).recommend(history, 23)
    rows = capsys.readouterr().out.splitlines()
    assert [row[21:] for row in rows] == [
        repr(each.title) if each.title in ("Tab\tbed", "Two\nlines") else each.title
        for each in expected
    ]
    assert [row[:21] for row in rows] == [
        f"{rank:2}  {each.score:8.3f}  {each.id:5}  " for rank, each in enumerate(expected, start=1)
    ]


def test_lists_of_allowed_items_as_json(model_with_catalogue, tmp_path, capsys):
    (tmp_path / "stock").write_text("raw3\nraw4\nraw5\n")
    arguments = ["--model", str(model_with_catalogue), "--within", str(tmp_path / "stock")]
    history = ["--history", "raw3", "--exclude-seen", "--json"]
    parse("recommend --history", arguments + history).run()
    expected = Recommender(model_with_catalogue).recommend(
        ["raw3"], exclude_seen=True, within=["raw4", "raw5"]
    )
    assert capsys.readouterr().out.count("\n") == 1
    (tmp_path / "histories").write_text('["raw3"]\n["raw3", "raw4"]\n')
    parse("recommend --histories", [*arguments, "--histories", str(tmp_path / "histories"),
          "--exclude-seen"]).run()  # fmt: skip
    lists = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[each["id"] for each in ranked] for ranked in lists] == [
        [each.id for each in expected],
        ["raw5"],
    ]


def test_a_model_without_a_catalogue_prints_one_line(fixed_model):
    arguments = ["recommend", "--model", fixed_model, "--history", "Heat"]
    done = STAGE_FORKS.run("-m", "rere", *arguments)
    assert (done.returncode, done.stdout) == (
        1,
        f"rere recommend --history: {fixed_model}/catalogue.safetensors: no such file; "
        "`rere sft`, `rere preference` and `rere rl` write it\n",
    )


# ------------------------------------------------------------------------------------- progress

PROGRESS = (
    "import rere.progress\n"
    "with rere.progress.progress(3, 'A [x]', 'step') as bar:\n"
    "    for step in range(3):\n"
    "        bar.set_postfix(loss='1' * (9 - 4 * step), refresh=True)\n"
    "        bar.update(1)\n"
)


def test_progress_prints_plain_lines_to_a_log():
    done = subprocess.run([sys.executable, "-c", PROGRESS], capture_output=True, text=True)
    assert done.stdout == ""
    assert "\r" not in done.stderr
    rows = done.stderr.splitlines()
    assert rows == [row.strip() for row in rows if row.strip()]
    assert rows[0] == "A [x]: 0/3 [00:00<?, ?step/s]"
    assert rows[-1].startswith("A [x]: 3/3 [00:00<00:00, ")
    assert rows[-1].endswith("step/s, loss=1]")


def test_progress_shows_a_bar_on_a_terminal():
    terminal, other_end = pty.openpty()
    termios.tcsetwinsize(other_end, (24, 80))
    with subprocess.Popen([sys.executable, "-c", PROGRESS], stderr=other_end) as process:
        os.close(other_end)
        shown = b""
        # Reading fails when the process has closed its end.
        with contextlib.suppress(OSError):
            while chunk := os.read(terminal, 1 << 16):
                shown += chunk
    os.close(terminal)
    assert process.returncode == 0
    assert shown.count(b"\rA [x]: ") > 3
    assert b"\rA [x]: 100%|" in shown
