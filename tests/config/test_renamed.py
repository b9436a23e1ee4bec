"""Old names of keys, values and flags fail and give the new one."""

import pytest
from study_configs import changed, config_error

from rere.cli import parse
from rere.config.options import RENAMED, new_name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methods__rere__rl__skip_silent": "exact"},
            "methods.rere.rl.skip_silent: renamed; write skip_zero_advantage",
        ),
        (
            {"methods__rere__rl__rollout": "common"},
            "methods.rere.rl.rollout: renamed; write iid",
        ),
        (
            {"methods__d3__decode": {"method": "d3"}},
            "methods.d3.decode.method: renamed; write algorithm",
        ),
        ({"speed": {"mine": {}}}, "speed: renamed; write benchmarks"),
        (
            {"datasets__ml-100k__repeats": "merge"},
            "datasets.ml-100k.repeats: renamed; write first",
        ),
        (
            {"methods__x": {"init": "sft", "rl": {}, "grid": {"redraw": [0, 4]}}},
            "methods.x.grid.redraw: renamed; write dynamic_sampling",
        ),
    ],
)
def test_a_study_with_an_old_name_fails(changes, message):
    assert config_error(changed(**changes)) == message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--evaluations 5", "--evaluations: renamed; write --validations"),
        ("--skip-silent=exact", "--skip-silent=exact: renamed; write --skip-zero-advantage"),
        ("--rollout dynamic", "--rollout: renamed; write oversample"),
    ],
)
def test_a_command_with_an_old_name_fails(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse("rl", f"{flags} --init . --data . --output .".split())
    assert capsys.readouterr().err == f"rere rl: {message}\n"


def test_a_key_that_still_exists_elsewhere_is_accepted():
    assert RENAMED["method"] == "algorithm"
    assert new_name("method", ["method", "algorithm"]) is None
    assert new_name("method", ["seed"]) is None
