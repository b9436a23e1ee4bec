"""Own rewards: only functions of one argument are taken, and errors name the user's line."""

from pathlib import Path

import pytest
import torch
from forks import STAGE_FORKS
from tiny_models import write_cycle, write_fixed_model

from rere.config.rl import RlOptions
from rere.errors import InputError
from rere.training.rewards import Groups, load_own_reward
from rere.training.rl import rl

FILE = Path(__file__).parents[1] / "faulty_rewards.py"


def groups() -> Groups:
    """One prompt with two candidates."""
    item = torch.tensor([[3, -1]])
    return Groups(torch.tensor([0]), [[1]], torch.tensor([3]), item, item == 3, torch.zeros(1, 2))


def line_of(text: str) -> int:
    lines = FILE.read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing_name", "* factor", "NameError: name 'factor' is not defined"),
        ("deeper", "raise RuntimeError", "RuntimeError: first line; correct it"),
        ("in_a_library", "cross_entropy", "TypeError: "),
        ("leaves", "sys.exit", "SystemExit: 3"),
        ("silent", "raise ValueError", "ValueError: ValueError"),
    ],
)
def test_an_error_shows_file_and_line(name, text, message):
    with pytest.raises(InputError) as refused:
        load_own_reward(f"faulty_rewards:{name}")(groups())
    expected = f"reward faulty_rewards:{name}: {FILE}, line {line_of(text)}: {message}"
    assert str(refused.value).startswith(expected)
    assert str(refused.value).endswith("; correct it")
    assert "\n" not in str(refused.value)


def test_memory_that_runs_out_is_not_the_functions_fault():
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_own_reward("faulty_rewards:takes_memory")(groups())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("huge", "returned an infinite or NaN reward"),
        ("elsewhere", "returned a tensor on meta; return one on the device of its input, cpu"),
    ],
)
def test_a_result_that_cannot_be_used_is_refused(name, message):
    with pytest.raises(InputError, match=f"^reward faulty_rewards:{name}: {message}"):
        load_own_reward(f"faulty_rewards:{name}")(groups())


def test_a_reward_may_be_infinite_where_there_is_no_item():
    """Its log-probability is."""
    log_prob = torch.tensor([[-1.5, -torch.inf]])
    reward = load_own_reward("faulty_rewards:log_prob")(groups()._replace(log_prob=log_prob))
    assert reward.tolist() == [[-1.5, 0.0]]


@pytest.mark.parametrize("name", ["with_default", "scaled", "method", "layer", "partial"])
def test_python_callables_of_one_argument_are_rewards(name):
    assert load_own_reward(f"faulty_rewards:{name}")(groups()).tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize(
    "name",
    [
        *["sys:exit", "os:system", "os:_exit", "os:abort", "builtins:print", "builtins:eval"],
        *["torch:zeros_like", "pathlib:Path", "math:pi", "faulty_rewards:Scale"],
        *["faulty_rewards:constant", "faulty_rewards:system"],
    ],
)
def test_what_is_no_python_function_is_refused(name, capfd):
    with pytest.raises(InputError, match=f"^reward {name}: is no function written in Python"):
        load_own_reward(name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["no_argument", "two_arguments", "keyword_only"])
def test_another_number_of_arguments_is_refused(name):
    with pytest.raises(InputError, match=f"^reward faulty_rewards:{name}: must take one argument"):
        load_own_reward(f"faulty_rewards:{name}")


def test_an_interactive_exit_ends_in_one_line():
    """`exit` of an interactive Python is an object whose class is written in Python."""
    with pytest.raises(InputError, match=r"^reward builtins:exit: "):
        load_own_reward("builtins:exit")(groups())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent", "import no_such_package", "line 1: ModuleNotFoundError: No module named"),
        ("undefined", "x = 1\nprint(y)", "line 2: NameError: name 'y' is not defined"),
        ("unclosed", "def f(groups:\n", "'\\(' was never closed "),
        ("leaving", "import sys\nsys.exit('bye')", "line 2: SystemExit: bye"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused(name, text, message, tmp_path, monkeypatch):
    (tmp_path / f"{name}_rewards.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"{name}_rewards:f"
    with pytest.raises(InputError, match=rf"^reward {name}: cannot be imported \(.*{message}"):
        load_own_reward(name)


def test_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="is no function written in Python"):
        rl(
            RlOptions(reward=["rule", "sys:exit"]),
            write_fixed_model(tmp_path / "init"),
            write_cycle(tmp_path / "data"),
            0,
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_the_command_prints_one_line(tmp_path):
    data, init = write_cycle(tmp_path / "data"), write_fixed_model(tmp_path / "init")
    options = ["--prompts", "4", "--rows-per-pass", "4", "--group-size", "2", "--steps", "1"]
    options += ["--output", tmp_path / "run", "--reward", "faulty_rewards:missing_name"]
    command = ["rere", "rl", "--init", init, "--data", data, *options]
    done = STAGE_FORKS.run("-m", *command, folder=FILE.parent)
    assert done.returncode == 1
    lines = [line for line in done.stdout.splitlines() if not line.startswith("rl: ")]
    assert lines == [
        f"rere rl: reward faulty_rewards:missing_name: {FILE}, line "
        f"{line_of('* factor')}: NameError: name 'factor' is not defined; correct it"
    ]
