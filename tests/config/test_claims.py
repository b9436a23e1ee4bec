"""Claims in a study's config: names, grids, removed entries, and the runs that they compare."""

from typing import Any

import pytest
from study_configs import SHIPPED, changed, config_error

from rere.cli import parse
from rere.config.claims import Claims
from rere.config.options import flags
from rere.study import load_study

COMPARED = {"table": "main", "method": "rere", "than": ["sft"]}


def with_claim(claim: Any = None, **changes: Any) -> dict[str, Any]:
    """The shipped config with one claim instead of its own."""
    sentence = {"sentence": "It is better.", "comparisons": [COMPARED]}
    return changed(claims={"mine": sentence | (claim or {})}, **changes)


def test_the_runs_of_a_claim_are_those_of_its_table():
    study = load_study(with_claim(tables__main__seeds=[0, 1]))
    expected = [
        ("main", f"results/runs/ml-100k/tiny/{method}/seed{seed}/num_beams=20")
        for method in ("sft", "rere")
        for seed in (0, 1)
    ]
    assert [(table, run.folder) for table, run in study.compared_runs()] == expected
    (compared,) = study.resolved_claims()["mine"].comparisons
    assert (compared.datasets, compared.backbones) == (["ml-100k"], ["tiny"])


def test_runs_of_two_tables_have_the_evaluation_of_each():
    sample = {**SHIPPED["tables"]["main"], "evaluation": {"rows": 40}, "methods": ["sft", "rere"]}
    comparisons = [COMPARED, COMPARED | {"table": "sample"}]
    study = load_study(with_claim({"comparisons": comparisons}, tables__sample=sample))
    found = [(table, run.folder.rpartition("/")[2]) for table, run in study.compared_runs()]
    assert found == [*[("main", "num_beams=20")] * 2, *[("sample", "rows=40-num_beams=20")] * 2]


def test_a_claim_compares_with_each_method_of_a_grid():
    methods = {"init": "sft", "rl": {}, "grid": {"beta": [0.0, 0.1]}}
    than = {"comparisons": [COMPARED | {"than": ["sft", "sweep"]}]}
    study = load_study(with_claim(than, methods__sweep=methods))
    assert study.claims["mine"].comparisons[0].than == ["sft", "sweep-beta=0.0", "sweep-beta=0.1"]


@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        ({"table": "mian"}, "table: there is no mian; did you mean main?"),
        ({"method": "reree"}, "method: there is no reree; did you mean rere?"),
        ({"than": ["stf"]}, "than: there is no stf; did you mean sft?"),
        ({"than": ["rere"]}, "than: rere would be compared with itself; leave it out"),
        ({"than": []}, "than: empty; give at least one"),
        ({"datasets": ["ml-100"]}, "datasets: there is no ml-100; did you mean ml-100k?"),
        ({"datasets": []}, "datasets: empty; give at least one"),
        ({"backbones": ["tin"]}, "backbones: there is no tin; did you mean tiny?"),
        ({"metod": "sft"}, "metod: unknown key; did you mean method?"),
    ],
)
def test_a_wrong_name_in_a_claim_is_named(comparison, message):
    config = with_claim({"comparisons": [COMPARED | comparison]})
    assert config_error(config) == f"claims.mine.comparisons.{message}"


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"metric": "NDCG@7"}, "metric: there is no NDCG@7; did you mean NDCG@5?"),
        ({"sentence": " "}, "sentence: write a sentence in one line"),
        ({"sentence": "a\nb"}, "sentence: write a sentence in one line"),
        ({"verdict": "supported"}, "verdict: unknown key; did you mean metric?"),
    ],
)
def test_a_wrong_key_of_a_claim_is_named(claim, message):
    assert config_error(with_claim(claim)) == f"claims.mine.{message}"


def test_a_claim_about_what_an_overlay_removes_is_not_run():
    tables = {"main": None, "other": SHIPPED["tables"]["main"]}
    study = load_study(with_claim(tables=tables))
    assert study.compared_runs() == []
    assert study.resolved_claims()["mine"].comparisons[0].datasets is None
    # A table that is there, without the method.
    study = load_study(with_claim(tables__main__methods=["sft"]))
    assert [run.method for _, run in study.compared_runs()] == ["sft"]


def test_an_overlay_may_remove_a_claim():
    assert load_study(changed(claims__traditional=None)).claims.keys() == (
        load_study(SHIPPED).claims.keys() - {"traditional"}
    )


def test_claims_are_passed_on_a_command_line(capsys):
    declared = Claims(claims=load_study(with_claim()).resolved_claims())
    words = [*flags(declared), "--runs", "main:a/b", "--output", "claims.md"]
    assert words[1].startswith('mine:{"sentence": "It is better.", "metric": "NDCG@10"')
    command = parse("claims", words)
    assert (command.claims, command.runs) == (declared.claims, ["main:a/b"])
    for arguments, message in [
        (["--claims", "mine:{"], "rere claims: --claims: write name:JSON (Expecting"),
        (["--claims", "mine:{}"], "rere claims: --claims: missing"),
        (["--runs", "a/b"], "rere claims: --runs: 'a/b' has no table and folder; write table:f"),
    ]:
        with pytest.raises(SystemExit):
            parse("claims", [*arguments, "--output", "claims.md"])
        assert capsys.readouterr().err.startswith(message)
