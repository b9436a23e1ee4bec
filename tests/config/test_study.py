"""A study's config: valid ones, errors with the key and the remedy, grids, and the JSON schema."""

import copy
import math
from typing import Any

import pytest
import yaml
from study_configs import ABSENT, CONFIG, SHIPPED, changed, config_error

from rere.config.evaluation import Recommend, read_spelling, spell, subfolder
from rere.config.options import flags
from rere.config.rl import RlOptions
from rere.config.study import Comparison
from rere.config.training import PreferenceOptions
from rere.study import load_study

FULL_MAIN = yaml.safe_load((CONFIG / "full.yaml").read_text())["tables"]["main"]
FULL = {**SHIPPED, "tables": {"main": {**SHIPPED["tables"]["main"], **FULL_MAIN}}}


def grid(grid: Any, stage: Any = None, **more: Any) -> dict[str, Any]:
    """The shipped config with a grid over `rl` in another table."""
    method = {"init": "sft", "rl": {} if stage is None else stage, "grid": grid, **more}
    table = {**SHIPPED["tables"]["main"], "methods": ["sft", "sweep"]}
    return changed(methods__sweep=method, tables__sweep=table)


# -------------------------------------------------------------------------------- valid configs


def test_the_shipped_configs_are_valid():
    study = load_study(SHIPPED)
    assert [run.folder for run in study.runs("main")] == [
        "results/runs/ml-100k/none/popularity/seed0",
        "results/runs/ml-100k/none/repeat_last/seed0",
        "results/runs/ml-100k/none/item_knn/seed0",
        "results/runs/ml-100k/none/gru4rec/seed0",
        "results/runs/ml-100k/none/caser/seed0",
        "results/runs/ml-100k/none/sasrec/seed0",
        "results/runs/ml-100k/tiny/bigrec/seed0",
        "results/runs/ml-100k/tiny/d3/seed0",
        "results/runs/ml-100k/tiny/s_dpo/seed0/num_beams=20",
        "results/runs/ml-100k/tiny/sprec/seed0/num_beams=20",
        "results/runs/ml-100k/tiny/sft/seed0/num_beams=20",
        "results/runs/ml-100k/tiny/sft_continued/seed0/num_beams=20",
        "results/runs/ml-100k/tiny/rere/seed0/num_beams=20",
    ]
    assert len(load_study(FULL).runs("main")) == 3 + 3 * 10


def test_a_baseline_without_random_numbers_has_one_run():
    table = {**SHIPPED["tables"]["main"], "seeds": [1, 2]}
    study = load_study(changed(tables__main=table, methods__item_knn__seed=5))
    seeds = {}
    for run in study.runs("main"):
        seeds.setdefault(run.method, []).append(run.seed)
    assert (seeds["popularity"], seeds["repeat_last"], seeds["item_knn"]) == ([0], [0], [5])
    assert seeds["sasrec"] == seeds["bigrec"] == seeds["rere"] == [1, 2]


def test_a_baseline_has_one_run_per_data_set():
    tables = {"main": {**SHIPPED["tables"]["main"], "backbones": ["tiny", "other"]}}
    other = {"source": "pretrained", "model": "Qwen/Qwen2-0.5B"}
    runs = load_study(changed(backbones__other=other, tables=tables)).runs("main")
    assert [run.backbone for run in runs] == ["none"] * 6 + ["tiny"] * 7 + ["other"] * 7


def test_missing_options_have_their_defaults():
    study = load_study(changed(methods__sft__sft={}))
    assert study.methods["sft"].options.batch_size == 128
    assert study.evaluation == Recommend(num_beams=20)


def test_steps_may_be_given_as_epochs():
    assert RlOptions().num_steps(1000) == PreferenceOptions().num_steps(1000) == 100
    assert RlOptions(steps=7).num_steps(1000) == 7
    assert RlOptions(epochs=2.0).num_steps(1000) == 63  # 2 * 1000 / 32 = 62.5
    assert PreferenceOptions(epochs=3.0, batch_size=64).num_steps(1000) == 47


def test_a_table_may_have_options_of_evaluation_of_its_own():
    sample = {**SHIPPED["tables"]["main"], "evaluation": {"rows": None, "num_beams": 20}}
    study = load_study(changed(tables__sample=sample, evaluation={"rows": 40, "batch_size": 3}))
    assert study.evaluation_of("main") == Recommend(rows=40, batch_size=3)
    assert study.evaluation_of("sample") == Recommend(num_beams=20, batch_size=3)
    folders = [
        {run.method: run.folder.partition("/seed0")[2] for run in study.runs(table)}
        for table in ("main", "sample")
    ]
    assert [each["popularity"] for each in folders] == ["/rows=40", ""]
    assert [each["d3"] for each in folders] == ["/rows=40", ""]
    assert [each["rere"] for each in folders] == ["/rows=40", "/num_beams=20"]
    # Paths of the defaults, of the study and of its tables; batch_size changes no result.
    assert study.evaluations("baseline").keys() == {"", "/rows=40"}
    assert study.evaluations("rl") == {
        "": Recommend(batch_size=3),
        "/rows=40": Recommend(rows=40, batch_size=3),
        "/num_beams=20": Recommend(num_beams=20, batch_size=3),
    }


def test_a_run_has_all_options_of_evaluation_that_its_stage_uses():
    runs = {run.method: run.evaluation for run in load_study(SHIPPED).runs("main")}
    assert runs["sasrec"] == "rows=None-list_length=50"
    assert runs["bigrec"] == runs["d3"] == "rows=None-list_length=50-dtype=auto"
    assert (
        runs["sft"]
        == runs["rere"]
        == ("rows=None-list_length=50-dtype=auto-num_beams=20-scoring=catalogue-length_penalty=0.0")
    )


@pytest.mark.parametrize("value", [1e-05, 0.5, 1e22])
def test_numbers_in_the_path_of_an_evaluation_are_read_back(value):
    text = spell(Recommend(length_penalty=value, scoring="vocabulary"))
    assert read_spelling(text)["length_penalty"] == str(value)
    assert subfolder(text) == f"/scoring=vocabulary-length_penalty={value}"


def test_a_null_removes_an_entry():
    study = load_study(
        changed(
            tables__main=None,
            tables__sweep={**SHIPPED["tables"]["main"], "methods": ["sft"]},
            methods__rere=None,
            backbones__wide=None,
            benchmarks__speed=None,
            datasets__other=None,
        )
    )
    assert list(study.tables) == ["sweep"]
    assert "rere" not in study.methods
    assert (list(study.datasets), list(study.backbones)) == (["ml-100k"], ["tiny"])
    assert list(study.benchmarks) == ["rollouts"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "2016-10"}, "datasets.x.start: input should be a valid date"),
        ({"start": "2018-11-01"}, "datasets.x: end must be after start, 2018-11-01"),
        ({"category": "../etc"}, "datasets.x.category: names have letters"),
        ({"category": ABSENT}, "datasets.x.category: missing"),
        ({"split": "random"}, "datasets.x.split: input should be 'chronological' or"),
        ({"tolerance": 1.0}, "datasets.x.tolerance: input should be less than 1"),
        ({"source": "table"}, "datasets.x.category: unknown key"),
    ],
)
def test_wrong_options_of_a_data_set_are_named(changes, message):
    options = {"source": "amazon-2018", "category": "Toys_and_Games"} | changes
    options = {key: value for key, value in options.items() if value != ABSENT}
    assert config_error(changed(datasets__x=options)).startswith(message)


def test_flags_of_a_table_name_metrics_and_labels():
    options = Comparison(metrics=["HR@1"], labels={"sft": "SFT only"}, highlight="rere")
    given = flags(options)
    assert given == [
        *("--metrics", "HR@1", "--labels", "sft:SFT only", "--reference=None", "--highlight=rere")
    ]


def test_flags_have_every_option():
    options = Recommend(rows=None, num_beams=20)
    assert " ".join(flags(options, skip=("dtype",))) == (
        "--rows=None --list-length=50 --num-beams=20 "
        "--scoring=catalogue --length-penalty=0.0 --batch-size=None"
    )
    reward = load_study(SHIPPED).methods["rere"].options
    assert " ".join(flags(reward)).count("--reward rule ranking --embeddings=None") == 1


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # A key.
        ({"datasts": {}}, "datasts: unknown key; did you mean datasets?"),
        (
            {"methods__sft__sft__learning_rat": 1.0e-3},
            "methods.sft.sft.learning_rat: unknown key; did you mean learning_rate?",
        ),
        (
            {"backbones__tiny__hidden": 8},
            "backbones.tiny.hidden: unknown key; did you mean hidden_size?",
        ),
        (
            {"backbones__qwen": {"source": "pretrained", "xyz": "gpt2"}},
            "backbones.qwen.xyz: unknown key; there are source, model, revision, gguf_file, "
            "training",
        ),
        ({"tables__main__seeds": ABSENT}, "tables.main.seeds: missing"),
        ({"datasets": ABSENT}, "datasets: missing"),
        ({"datasets__ml-100k__source": ABSENT}, "datasets.ml-100k.source: missing"),
        ({"backbones__tiny__source": ABSENT}, "backbones.tiny.source: missing"),
        ({"backbones__tiny__corpus": ABSENT}, "backbones.tiny.corpus: missing"),
        ({"methods__sasrec__baseline": {}}, "methods.sasrec.baseline.model: missing"),
        # A name.
        (
            {"datasets__ml-100k__source": "ml-100"},
            "datasets.ml-100k.source: there is no ml-100; did you mean ml-100k?",
        ),
        (
            {"backbones__tiny__source": "tinny"},
            "backbones.tiny.source: there is no tinny; did you mean tiny?",
        ),
        (
            {"methods__sasrec__baseline__model": "sasrek"},
            "methods.sasrec.baseline.model: there is no sasrek; did you mean sasrec?",
        ),
        (
            {"methods__rere__rl__reward": ["rule", "rankin"]},
            "methods.rere.rl.reward: there is no rankin; did you mean ranking? (your own is "
            "module:function)",
        ),
        (
            {"backbones__tiny__corpus": "ml100k"},
            "backbones.tiny.corpus: there is no ml100k; did you mean ml-100k?",
        ),
        ({"methods__rere__init": "stf"}, "methods.rere.init: there is no stf; did you mean sft?"),
        (
            {"tables__main__datasets": ["xyz"]},
            "tables.main.datasets: there is no xyz; there are ml-100k",
        ),
        (
            {"tables__main__backbones": ["tini"]},
            "tables.main.backbones: there is no tini; did you mean tiny?",
        ),
        (
            {"tables__main__reference": "sftt"},
            "tables.main.reference: there is no sftt; did you mean sft?",
        ),
        (
            {"tables__main__methods": ["sft"], "tables__main__reference": "rere"},
            "tables.main.reference: there is no rere; there are sft",
        ),
        (
            {"backbones__none": {"source": "pretrained", "model": "gpt2"}},
            "backbones.none: stands for methods without one; choose another name",
        ),
        (
            {"datasets__a/b": {"source": "ml-100k"}},
            "datasets.a/b: names have letters, digits, `_`, `.` and `-`, and start with a letter "
            "or digit",
        ),
        (
            {"tables__..": SHIPPED["tables"]["main"]},
            "tables...: names have letters, digits, `_`, `.` and `-`, and start with a letter or "
            "digit",
        ),
        (
            {"tables__main__evaluation": {"batch_size": 3}},
            "tables.main.evaluation.batch_size: unknown key; there are rows, list_length, dtype, "
            "num_beams, scoring, length_penalty",
        ),
        (
            {"tables__main__evaluation": {"rows": 0}},
            "tables.main.evaluation.rows: input should be greater than or equal to 1, not 0",
        ),
        # A value.
        (
            {"methods__sft__sft__learning_rate": "3e-4"},
            "methods.sft.sft.learning_rate: '3e-4' is a string to YAML; write 3.0e-4",
        ),
        (
            {"methods__sft__sft__learning_rate": "1.5E3"},
            "methods.sft.sft.learning_rate: '1.5E3' is a string to YAML; write 1.5e+3",
        ),
        (
            {"methods__sft__sft__learning_rate": "fast"},
            "methods.sft.sft.learning_rate: input should be a valid number, not 'fast'",
        ),
        (
            {"methods__sft__sft__learning_rate": 0},
            "methods.sft.sft.learning_rate: input should be greater than 0, not 0",
        ),
        (
            {"methods__sft__sft__learning_rate": math.inf},
            "methods.sft.sft.learning_rate: input should be a finite number, not inf",
        ),
        (
            {"methods__sft__sft__batch_size": 64.0},
            "methods.sft.sft.batch_size: input should be a valid integer, not 64.0",
        ),
        (
            {"evaluation__rows": "all"},
            "evaluation.rows: input should be a valid integer, not 'all'",
        ),
        (
            {"tables__main__seeds": [True]},
            "tables.main.seeds: input should be a valid integer, not True",
        ),
        (
            {"tables__main__methods": [2018]},
            "tables.main.methods: 2018 is not a string to YAML; put it in quotes",
        ),
        (
            {"methods__sasrec__baseline__num_heads": 3},
            "methods.sasrec.baseline: hidden_size must be a multiple of num_heads",
        ),
        (
            {"methods__rere__rl__prompts": 9},
            "methods.rere.rl: prompts must be a multiple of rows_per_pass",
        ),
        # A list.
        ({"tables__main__seeds": []}, "tables.main.seeds: empty; give at least one"),
        ({"tables__main__seeds": 0}, "tables.main.seeds: input should be a valid list, not 0"),
        ({"tables__main__seeds": [0, 1, 0]}, "tables.main.seeds: 0 comes twice"),
        ({"tables__main__methods": ["sft", "sft"]}, "tables.main.methods: sft comes twice"),
        ({"tables__main__metrics": ["HR@5", "HR@5"]}, "tables.main.metrics: HR@5 comes twice"),
        (
            {"tables__main__metrics": ["HR@5", "NDGC@10"]},
            "tables.main.metrics: there is no NDGC@10; did you mean NDCG@10?",
        ),
        (
            {"tables__main__labels": {"rer": "ReRe"}},
            "tables.main.labels: there is no rer; did you mean rere?",
        ),
        (
            {"tables__main__labels": {"rere": "Re\nRe"}},
            "tables.main.labels: rere has no label of printable characters; write name:label",
        ),
        (
            {"tables__main__highlight": "rer"},
            "tables.main.highlight: there is no rer; did you mean rere?",
        ),
        # A section.
        ({"methods": None}, "methods: input should be a mapping, not nothing"),
        ({"methods": ["sft"]}, "methods: input should be a mapping, not a list"),
        # A removed entry.
        (
            {"methods__sasrec": None},
            "methods.d3.collaborative: there is no sasrec; did you mean sprec?\n"
            "tables.main.methods: there is no sasrec; did you mean sprec?",
        ),
        (
            {"methods__sft__sft": None},
            "methods.sft: sft is empty; write `sft: {}` for its defaults",
        ),
        ({"evaluation": None}, "evaluation: input should be a mapping, not nothing"),
        ({"tables__main": "sft"}, "tables.main: input should be a mapping, not 'sft'"),
        # A method.
        (
            {"methods__sft__rl": {}},
            "methods.sft: give exactly one of baseline, sft, preference, rl, decode",
        ),
        (
            {"methods__sft": {}},
            "methods.sft: give exactly one of baseline, sft, preference, rl, decode",
        ),
        ({"methods__sasrec__init": "sft"}, "methods.sasrec: a baseline takes no init"),
        (
            {"methods__rere__init": "sasrec"},
            "methods.rere.init: sasrec is a baseline, which trains no model to start from",
        ),
        (
            {"methods__rere__init": "d3"},
            "methods.rere.init: d3 is a decode, which trains no model to start from",
        ),
        (
            {"methods__d3__collaborative": None},
            "methods.d3.collaborative: missing; name the sequential baseline that d3 needs",
        ),
        (
            {"methods__d3__decode__alpha": 1.0},
            "methods.d3.collaborative: d3 has no reward or alpha that needs it; leave it out",
        ),
        (
            {"methods__d3__decode__algorithm": "d4"},
            "methods.d3.decode.algorithm: there is no d4; there are beam, bigrec, d3",
        ),
        (
            {"methods__sprec__preference__iterations": 3},
            "methods.sprec.preference: steps must be a multiple of twice the iterations "
            "(5 by default)",
        ),
        (
            {"methods__rere__rl__epochs": 1.0},
            "methods.rere.rl: give steps or epochs, not both; the other is null",
        ),
        (
            {"methods__sprec__preference": {"algorithm": "sprec", "epochs": 1.0}},
            "methods.sprec.preference: algorithm: sprec takes steps; leave epochs out",
        ),
        (
            {"methods__rere__rl__reward": ["collaborative"]},
            "methods.rere.collaborative: missing; name the sequential baseline that the reward "
            "needs",
        ),
        (
            {"methods__rere__collaborative": "sasrec"},
            "methods.rere.collaborative: rere has no reward or alpha that needs it; leave it out",
        ),
        (
            {
                "methods__rere__collaborative": "popularity",
                "methods__rere__rl__reward": ["collaborative"],
            },
            "methods.rere.collaborative: popularity is not a sequential baseline; name one of "
            "gru4rec, caser or sasrec",
        ),
        (
            {"methods__rere__collaborative": "sasrek"},
            "methods.rere.collaborative: there is no sasrek; did you mean sasrec?",
        ),
        (
            {"methods__rere__rl__rollout": "iid", "methods__rere__rl__scoring": "vocabulary"},
            "methods.rere.rl: rollout: iid needs scoring: catalogue",
        ),
        (
            {"methods__rere__rl__objective": "dappo"},
            "methods.rere.rl.objective: input should be 'grpo', 'dapo', 'gspo', 'dr_grpo', "
            "'released_token_mean' or 'released_sequence_mean', not 'dappo'",
        ),
        ({"methods__sft__init": "sft"}, "methods.sft.init: sft starts from sft"),
        (
            {"methods__sft__init": "rere"},
            "methods.sft.init: sft starts from rere starts from sft\n"
            "methods.rere.init: rere starts from sft starts from rere",
        ),
    ],
)
def test_one_line_names_the_key_and_the_remedy(changes, message):
    assert config_error(changed(**changes)) == message


def test_each_wrong_key_has_a_line():
    config = changed(evaluation__rows=0, methods__sft__sft__epochs=-1.0, tables__main__seeds=[-1])
    assert [line.split(":")[0] for line in config_error(config).splitlines()] == [
        "methods.sft.sft.epochs",
        "evaluation.rows",
        "tables.main.seeds",
    ]
    config = changed(methods__rere__init="x", tables__main__methods=["sft", "y", "z"])
    assert [line.split(";")[0] for line in config_error(config).splitlines()] == [
        "methods.rere.init: there is no x",
        "tables.main.methods: there is no y",
        "tables.main.methods: there is no z",
    ]


@pytest.mark.parametrize("number", ["3e-4", "1E5", "1.5e3", "2.e3", ".5e3", "+1e+2"])
def test_the_suggested_number_equals_the_written_one(number):
    assert yaml.safe_load(number) == number
    message = config_error(changed(methods__sft__sft__learning_rate=number))
    assert yaml.safe_load(message.rpartition("write ")[2]) == float(number)


def test_a_method_without_a_name_is_refused():
    config = changed()
    config["methods"][None] = []
    first, second = config_error(config).splitlines()
    assert first == "methods: input should be a valid string, not nothing"
    assert second == "methods: input should be a mapping, not a list"


def test_a_key_that_yaml_reads_as_a_number_is_named():
    config = changed()
    config["datasets"][2018] = {"source": "ml-100k"}
    assert config_error(config) == "datasets.2018: 2018 is not a string to YAML; put it in quotes"


@pytest.mark.parametrize(("config", "kind"), [(None, "nothing"), ([], "a list"), ("x", "'x'")])
def test_a_config_other_than_a_mapping_is_refused(config, kind):
    assert config_error(config) == f"input should be a mapping, not {kind}"


# ------------------------------------------------------------------------------------- extending


def extending(method: Any, **more: Any) -> dict[str, Any]:
    """The shipped config with the method `mine`."""
    return changed(methods__mine=method, **more)


def test_a_method_has_the_keys_of_the_one_that_it_extends():
    mine = {"extends": "rere", "rl": {"beta": 0.5, "dynamic_sampling": 0}}
    study = load_study(extending(mine, methods__again={"extends": "mine", "init": None}))
    rere, mine, again = (study.methods[name] for name in ("rere", "mine", "again"))
    expected = rere.rl.model_copy(update={"beta": 0.5, "dynamic_sampling": 0})
    assert (mine.rl, mine.init) == (expected, "sft")
    assert (again.rl, again.init, again.extends) == (expected, None, None)


def test_an_extending_method_may_have_a_grid_and_another_model():
    config = extending(
        {"extends": "rere", "rl": {"beta": 0.5}, "grid": {"steps": [1, 2]}},
        methods__other={"extends": "gru4rec", "baseline": {"model": "sasrec"}},
    )
    study = load_study(config)
    steps = [study.methods[f"mine-steps={n}"].rl for n in (1, 2)]
    assert [(each.steps, each.beta, each.scoring) for each in steps] == [
        (1, 0.5, "catalogue"),
        (2, 0.5, "catalogue"),
    ]
    assert study.methods["other"].baseline.model_dump() == (
        study.methods["sasrec"].baseline.model_dump() | {"dropout": 0.4}
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            extending({"extends": "reree"}),
            "methods.mine.extends: there is no reree; did you mean rere?",
        ),
        (
            extending({"extends": "rere"}, methods__rere=None, tables__main=None),
            "methods.mine.extends: there is no rere; there are popularity, repeat_last, item_knn, "
            "gru4rec, caser, sasrec, gru4rec_faithful, caser_faithful, sasrec_faithful, "
            "gru4rec_tuned, caser_tuned, sasrec_tuned, sft, sft_continued, bigrec, d3, s_dpo, "
            "sprec, mine",
        ),
        (
            extending({"extends": "gru4rec_tuned"}),
            "methods.mine.extends: gru4rec_tuned is a grid; extend a method without `grid`",
        ),
        (
            extending({"extends": "other"}, methods__other={"extends": "mine", "rl": {}}),
            "methods.mine.extends: mine extends other extends mine\n"
            "methods.other.extends: other extends mine extends other",
        ),
        (extending({"extends": "mine"}), "methods.mine.extends: mine extends mine"),
        (
            extending({"extends": 3}),
            "methods.mine.extends: 3 is not a string to YAML; put it in quotes",
        ),
        (
            extending({"extends": "sft", "rl": {}}),
            "methods.mine: give exactly one of baseline, sft, preference, rl, decode",
        ),
        # The key is that of the method that has it.
        (
            extending({"extends": "rere", "rl": {"beta": -1.0}}),
            "methods.mine.rl.beta: input should be greater than or equal to 0, not -1.0",
        ),
        (
            extending({"extends": "rere", "rl": {"steps": 9}}, methods__rere__rl__beta=-1.0),
            "methods.rere.rl.beta: input should be greater than or equal to 0, not -1.0",
        ),
        (
            extending({"extends": "rere", "rl": {"bet": 1.0}}),
            "methods.mine.rl.bet: unknown key; did you mean beta?",
        ),
        (
            extending({"extends": "rere", "grid": {"steps": [1]}}, methods__rere__rl__bet=-1.0),
            "methods.rere.rl.bet: unknown key; did you mean beta?",
        ),
        (
            extending({"extends": "rere", "grid": {"steps": ["1"]}}),
            "methods.mine.grid.steps: input should be a valid integer, not '1'",
        ),
        (
            extending({"extends": "rere", "rl": {"epochs": 1.0}}),
            "methods.mine.rl: give steps or epochs, not both; the other is null",
        ),
    ],
)
def test_a_method_that_cannot_extend_another_is_named(config, message):
    assert config_error(config) == message


# ------------------------------------------------------------------------------------- backbones


def test_a_backbone_has_options_of_training():
    training = {"rows_per_pass": 4, "dtype": "bfloat16"}
    config = changed(backbones__tiny__training=training)
    study = load_study(config)
    sft = study.options_of("sft", "tiny")
    assert sft == study.methods["sft"].sft.model_copy(update=training)
    assert study.options_of("sft", "wide") == study.methods["sft"].sft
    assert study.options_of("d3", "tiny") == study.methods["d3"].decode


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"rows_per_pas": 4}, "rows_per_pas: unknown key; did you mean rows_per_pass?"),
        ({"rows_per_pass": 0}, "rows_per_pass: input should be greater than or equal to 1, not 0"),
        ({"learning_rate": 1.0}, "learning_rate: unknown key; there are optimizer, dtype, rows"),
    ],
)
def test_wrong_options_of_training_are_named(training, message):
    line = config_error(changed(backbones__tiny__training=training))
    assert line.startswith(f"backbones.tiny.training.{message}")


def test_options_that_a_method_of_the_backbone_cannot_have_are_named():
    where = "backbones.tiny.training: with methods."
    assert config_error(changed(backbones__tiny__training={"rows_per_pass": 12})).splitlines() == [
        f"{where}sft: batch_size must be a multiple of rows_per_pass",
        f"{where}s_dpo: batch_size must be a multiple of rows_per_pass",
        f"{where}sprec: batch_size must be a multiple of rows_per_pass",
        f"{where}sft_continued: batch_size must be a multiple of rows_per_pass",
        f"{where}rere: prompts must be a multiple of rows_per_pass",
    ]
    # A backbone that no table has is not trained.
    assert load_study(changed(backbones__wide__training={"rows_per_pass": 12}))


# ---------------------------------------------------------------------------------------- grids


def test_a_grid_has_a_method_per_combination():
    betas, rates = [0.0, 1.0e-3, 0.01, 0.1], [1.0e-6, 1.0e-5, 1.0e-4, 1.0e-3, 1.0e-2]
    study = load_study(grid({"beta": betas, "learning_rate": rates}, {"steps": 7}))
    members = study.tables["sweep"].methods[1:]
    assert study.tables["sweep"].methods[0] == "sft"
    assert len(set(members)) == 20
    assert members[:3] == [
        f"sweep-beta=0.0-learning_rate={rate}" for rate in ("1e-06", "1e-05", "0.0001")
    ]
    assert "sweep" not in study.methods
    member = study.methods["sweep-beta=0.01-learning_rate=0.001"]
    assert (member.init, member.stage, member.options.steps) == ("sft", "rl", 7)
    assert (member.options.beta, member.options.learning_rate) == (0.01, 0.001)
    assert len(study.runs("sweep")) == 21
    assert len(study.runs("main")) == 13


def test_tables_and_methods_may_name_a_member_of_a_grid():
    config = grid({"reward": [["rule"], ["rule", "ranking"]]})
    config["tables"]["sweep"] |= {"methods": ["sweep-reward=rule+ranking"], "reference": None}
    config["methods"]["more"] = {"init": "sweep-reward=rule", "sft": {}}
    study = load_study(config)
    assert [run.method for run in study.runs("sweep")] == ["sweep-reward=rule+ranking"]
    assert study.methods["sweep-reward=rule+ranking"].options.reward == ["rule", "ranking"]


def test_a_member_of_a_grid_may_have_a_label():
    """On the command line, too, where its name has equals signs of its own."""
    labels = {"sweep-beta=0.1": "β=0.1", "sweep-reward=rule+ranking": "both", "my-sft": "a=b: c"}
    labels["ablation-reward=rule-beta=0.1"] = "Mine"
    config = grid({"beta": [0.0, 0.1]})
    config["tables"]["sweep"]["labels"] = {"sweep-beta=0.1": "β=0.1"}
    assert load_study(config).tables["sweep"].label("sweep-beta=0.1") == "β=0.1"
    given = flags(Comparison(labels=labels))
    words = given[given.index("--labels") + 1 :][: len(labels)]
    assert Comparison.model_validate({"labels": words}).labels == labels


def test_a_grid_of_rewards_names_one_baseline():
    config = grid({"reward": [["rule"], ["collaborative=0.1"]]}, collaborative="sasrec")
    study = load_study(config)
    assert [study.methods[name].needs_baseline for name in study.tables["sweep"].methods] == [
        False,
        False,
        True,
    ]


def test_a_method_with_one_seed_has_one_run():
    study = load_study(changed(methods__sft__seed=7, tables__main__seeds=[0, 1]))
    seeds = {(run.method, run.seed) for run in study.runs("main")}
    assert {seed for method, seed in seeds if method == "sft"} == {7}
    assert {seed for method, seed in seeds if method == "rere"} == {0, 1}
    assert (study.seed_of("sft", 3), study.seed_of("rere", 3)) == (7, 3)


def test_the_ablations_have_one_budget():
    overlay = yaml.safe_load((CONFIG / "ablations.yaml").read_text())
    config = copy.deepcopy(SHIPPED)
    for section, entries in overlay.items():
        for name, entry in entries.items():
            config[section][name] = config[section].get(name, {}) | entry
    study = load_study(config)
    tables = ("sampling", "reward", "algorithm", "generation", "initialisation")
    budgets = set()
    for table in tables:
        runs = study.runs(table)
        assert [run.seed for run in runs if run.method == "sft"] == [0]
        assert study.tables[table].reference in study.tables[table].methods
        options = [study.methods[run.method].rl for run in runs if run.method != "sft"]
        budgets |= {(each.steps, each.prompts, each.group_size) for each in options}
    assert budgets == {(60, 32, 16)}


def test_a_grid_may_vary_the_model():
    models = {"baseline": {}, "grid": {"model": ["popularity", "repeat_last"]}}
    study = load_study(changed(methods__trivial=models))
    assert study.methods["trivial-model=repeat_last"].options.model == "repeat_last"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            grid({"beta": [0.0, "1e-3"]}),
            "methods.sweep.grid.beta: '1e-3' is a string to YAML; write 1.0e-3",
        ),
        (
            grid({"beta": [0.0, 0.1], "reward": [["rule"], ["rul"]]}),
            "methods.sweep.grid.reward: there is no rul; did you mean rule? (your own is "
            "module:function)",
        ),
        (
            grid({"betta": [0.0, 0.1]}),
            "methods.sweep.grid.betta: unknown key; did you mean beta?",
        ),
        (
            grid({"beta": [0.0, 0.1]}, {"steps": 0}),
            "methods.sweep.rl.steps: input should be greater than or equal to 1, not 0",
        ),
        (
            grid({"beta": [0.0, 0.1]}, {"stps": 1}),
            "methods.sweep.rl.stps: unknown key; did you mean steps?",
        ),
        (
            grid({"prompts": [32, 12]}),
            "methods.sweep.rl: prompts must be a multiple of rows_per_pass",
        ),
        (
            grid({"beta": [0.0, 0.1]}, init="stf"),
            "methods.sweep.init: there is no stf; did you mean sft?",
        ),
        (grid({"beta": [0.1, 0.1]}), "methods.sweep.grid: sweep-beta=0.1 comes twice"),
        (grid({"beta": []}), "methods.sweep.grid.beta: empty; give at least one"),
        (grid({"beta": 0.1}), "methods.sweep.grid.beta: input should be a valid list, not 0.1"),
        (grid({}), "methods.sweep.grid: empty; give at least one"),
        (grid([0.1]), "methods.sweep.grid: input should be a mapping, not a list"),
        (
            grid({"beta": [0.1]}, "fast"),
            "methods.sweep.rl: input should be a mapping, not 'fast'",
        ),
        (
            grid({"beta": [0.1]}, sft={}),
            "methods.sweep: give exactly one of baseline, sft, preference, rl, decode",
        ),
    ],
)
def test_errors_in_a_grid_name_the_key_as_written(config, message):
    assert config_error(config) == message


def test_a_grid_with_the_name_of_a_method_is_refused():
    config, same = grid({"beta": [0.1]}), {"sweep-beta=0.1": {"sft": {}}}
    for methods in (same | config["methods"], config["methods"] | same):
        assert config_error(config | {"methods": methods}) == (
            "methods.sweep.grid: sweep-beta=0.1 comes twice"
        )


def test_a_table_with_a_grid_and_its_member_is_refused():
    config = grid({"beta": [0.0, 0.1]})
    config["tables"]["sweep"]["methods"] = ["sft", "sweep", "sweep-beta=0.1"]
    assert config_error(config) == "tables.sweep.methods: sweep-beta=0.1 comes twice"


# --------------------------------------------------------------------------------------- schema


def test_the_schema_accepts_the_shipped_configs(config_schema):
    config_schema.validate(SHIPPED)
    config_schema.validate(FULL)
    config_schema.validate(changed(tables__main=None, datasets__other=None))
    config_schema.validate(grid({"beta": [0.0, 0.1], "reward": [["rule"], ["ranking"]]}))


@pytest.mark.parametrize(
    "mapping",
    [
        (),
        ("datasets", "ml-100k"),
        ("backbones", "tiny"),
        ("methods", "sasrec"),
        ("methods", "sasrec", "baseline"),
        ("methods", "sft", "sft"),
        ("methods", "rere", "rl"),
        ("evaluation",),
        ("tables", "main"),
    ],
    ids=".".join,
)
def test_the_schema_rejects_a_misspelt_key(config_schema, mapping):
    assert not config_schema.is_valid(changed(**{"__".join([*mapping, "misspelt"]): 1}))


@pytest.mark.parametrize(
    "changes",
    [
        {"methods__sft__sft__learning_rate": "3e-4"},
        {"methods__sft__sft__batch_size": 0},
        {"methods__rere__rl__reward": ["rul"]},
        {"tables__main__seeds": []},
        {"tables__main__seeds": ABSENT},
        {"methods__sweep": {"rl": {}, "grid": {"beta": []}}},
    ],
    ids=str,
)
def test_the_schema_rejects_a_wrong_value(config_schema, changes):
    assert not config_schema.is_valid(changed(**changes))
