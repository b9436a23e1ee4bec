"""Models that are stored as LoRA adapters: the same model as the merged one, without its base."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import CYCLE, FAMILIES, causal_lm, write_data
from training_runs import SHORT, assert_has_catalogue, read_log, run_stage

from rere import Recommender
from rere.adapters import (
    AdapterBase,
    hash_weights,
    load_adapters,
    merge_adapters,
    save_adapters,
)
from rere.backbones import load_model, load_tokenizer
from rere.catalogue import CATALOGUE
from rere.config.evaluation import Recommend
from rere.config.run import ADAPTED_FILES, CARD, TRAINED_FILES
from rere.config.training import SftOptions
from rere.errors import InputError
from rere.evaluation.predictions import read_predictions
from rere.evaluation.recommend import recommend
from rere.inputs import model_files
from rere.model_card import REPO

LORA = {"lora_rank": 4, "learning_rate": 1e-2}
ADAPTERS = {**LORA, "save": "adapters"}


def assert_same_model(actual: Path, expected: Path, exactly: bool = True) -> None:
    ours, theirs = (load_model(folder / "model").state_dict() for folder in (actual, expected))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        tolerance = 0 if exactly else 1e-6
        torch.testing.assert_close(weight, theirs[name], atol=tolerance, rtol=0)


# ----------------------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("stage", SHORT)
def test_adapters_with_their_base_are_the_merged_model(stage, trained):
    merged, adapted = trained(stage, **LORA), trained(stage, **ADAPTERS)
    assert {path.name for path in (merged / "model").iterdir()} == {*TRAINED_FILES, CARD}
    assert {path.name for path in (adapted / "model").iterdir()} == {*ADAPTED_FILES, CARD}
    assert read_log(adapted) == read_log(merged)
    assert_same_model(adapted, merged)
    assert_has_catalogue(adapted, CYCLE)
    weights = "model.safetensors"
    small = (adapted / "model" / "adapter_model.safetensors").stat().st_size
    assert small < (merged / "model" / weights).stat().st_size / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_every_family_come_back(family, tmp_path):
    """Also two after each other, with different scales, which are stored as one."""
    base = AdapterBase(model="base", sha256=hash_weights(causal_lm(family, 50)))
    earlier, model = None, causal_lm(family, 50)
    for folder, rank, alpha in ((tmp_path / "one", 2, 32.0), (tmp_path / "two", 3, 5.0)):
        folder.mkdir()
        config = LoraConfig(
            task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules="all-linear"
        )
        adapted = get_peft_model(model, config)
        for name, weight in adapted.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(weight, std=0.1)
        if earlier is None:
            assert hash_weights(adapted) == base.sha256
        save_adapters(adapted, base, earlier, folder, folder)
        model, earlier = adapted.merge_and_unload(), load_adapters(folder)
        found = merge_adapters(causal_lm(family, 50), folder).state_dict()
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)


def test_lists_and_scores_are_those_of_the_merged_model(trained, cycle, tmp_path):
    data = write_data(tmp_path / "data", CYCLE, test=[([i, (i + 1) % 8], 0) for i in range(8)])
    found, lists = [], []
    for options in (LORA, ADAPTERS):
        model = trained("sft", **options) / "model"
        path = tmp_path / "predictions.parquet"
        recommend(Recommend(rows=None, num_beams=8), model, data, 0, path)
        found.append(read_predictions(path))
        lists.append(Recommender(model).recommend(["Beta", "Zeta"], top=8))
    assert found[0]["items"].equals(found[1]["items"])
    scores = [torch.tensor(frame["scores"].to_list()) for frame in found]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=0)
    assert [item.id for item in lists[0]] == [item.id for item in lists[1]]


def test_merged_runs_say_nothing_of_adapters(trained):
    card = (trained("sft", **LORA) / "model" / CARD).read_text()
    assert "LoRA adapters" not in card and "save:" not in card
    assert "| weights | LoRA adapters of fixed_model" in (
        (trained("sft", **ADAPTERS) / "model" / CARD).read_text()
    )


def test_the_same_run_writes_the_same_files(home, cycle):
    options = SHORT["sft"].model_copy(update=ADAPTERS)
    run_stage(options, Path("results/base"), cycle, 0, Path("results/again"))
    for name in (*ADAPTED_FILES, CARD):
        paths = (Path("results", run, "model", name) for run in ("run", "again"))
        assert len({path.read_bytes() for path in paths}) == 1, name


def test_a_stranger_loads_them_with_peft(home):
    """As the card shows."""
    *_, code = re.findall("```python\n(.*?)```", Path("results/run/model", CARD).read_text(), re.S)
    assert "AutoPeftModelForCausalLM" in code
    exec(code.replace(REPO, "results/run/model"), shown := {})
    model = shown["model"]
    tokens = torch.tensor([load_tokenizer("results/run/model")("Alpha One, Beta").input_ids])
    with torch.no_grad():
        theirs, ours = model(tokens).logits, load_model("results/run/model")(tokens).logits
        start = load_model("results/base")(tokens).logits
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert (ours - start).abs().max() > 1e-3


@pytest.mark.parametrize("by_snakemake", [False, True])
def test_a_run_with_another_save_replaces_the_files(home, cycle, by_snakemake):
    saves = [(LORA, TRAINED_FILES), (ADAPTERS, ADAPTED_FILES), (LORA, TRAINED_FILES)]
    for changes, names in saves:
        options = SHORT["sft"].model_copy(update=changes)
        for name in names if by_snakemake else ():  # it deletes the outputs of the job first
            Path("results/run/model", name).unlink(missing_ok=True)
        run_stage(options, Path("results/base"), cycle, 0, Path("results/run"))
        assert {path.name for path in Path("results/run/model").iterdir()} == {*names, CARD}


def test_adapters_are_refused_without_a_rank():
    with pytest.raises(ValueError, match="save: adapters needs lora_rank"):
        SftOptions(save="adapters")


# ------------------------------------------------------------------------------------ a next stage


@pytest.mark.parametrize(("lora_rank", "save"), [(None, "merged"), (2, "merged"), (2, "adapters")])
def test_a_next_stage_trains_as_it_does_after_a_merged_model(trained, lora_rank, save):
    changes = {"lora_rank": lora_rank, "learning_rate": 1e-2}
    expected = trained("rl", trained("sft", **LORA) / "model", **changes)
    first = trained("sft", **ADAPTERS) / "model"
    actual = trained("rl", first, **changes, save=save)
    assert read_log(actual) == read_log(expected)
    assert_same_model(actual, expected, exactly=save == "merged")


def test_adapters_of_two_stages_have_one_base_and_both_ranks(home, cycle, monkeypatch):
    options = SHORT["rl"].model_copy(update={**ADAPTERS, "lora_rank": 2, "lora_alpha": 8.0})
    run_stage(options, Path("results/run/model"), cycle, 0, Path("results/second"))
    config = json.loads(Path("results/second/model/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (6, 6)
    assert config["base_model_name_or_path"] == "results/base"
    shutil.rmtree("results/run")
    model = AutoPeftModelForCausalLM.from_pretrained("results/second/model")
    ours = load_model("results/second/model")
    for name, weight in model.merge_and_unload().state_dict().items():
        torch.testing.assert_close(weight, ours.state_dict()[name], atol=1e-6, rtol=0)


# ----------------------------------------------------------------------------------- moves, faults


def test_a_moved_checkout_is_found(home, monkeypatch):
    expected = load_model("results/run/model").state_dict()
    monkeypatch.chdir(home.parent)
    home.rename("moved")
    monkeypatch.chdir("moved/results")
    for name, weight in load_model("run/model").state_dict().items():
        assert weight.equal(expected[name])


def test_a_moved_run_finds_its_base_from_the_working_folder(home):
    Path("results/run/model").rename("elsewhere")
    load_model("elsewhere")
    assert "results/base/model.safetensors" in model_files("elsewhere")


def refuse(message: str) -> None:
    with pytest.raises(InputError) as raised:
        load_model("results/run/model")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_base_is_named(home):
    shutil.rmtree("results/base")
    refuse(
        "results/base: missing, and the adapters in results/run/model need it; put it back, or "
        "train them again with `save: merged`"
    )
    assert f"results/run/model/{CATALOGUE}" in model_files("results/run/model")


def test_a_changed_base_is_named(home):
    path = Path("results/base/model.safetensors")
    weights = load_file(path)
    next(iter(weights.values()))[0] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    refuse(
        "results/base/model.safetensors: has other weights than the adapters in results/run/model "
        "were trained on; put those back, or train the adapters again"
    )


def test_a_base_stored_in_other_files_is_the_same(home):
    load_model("results/base").save_pretrained("other", max_shard_size=5000)
    Path("results/base/model.safetensors").unlink()
    for path in Path("other").glob("*.safetensors*"):
        path.rename(Path("results/base", path.name))
    load_model("results/run/model")


def test_adapters_of_adapters_are_refused(home):
    shutil.rmtree("results/base")
    shutil.copytree("results/run/model", "results/base")
    refuse("results/base: has adapters, and cannot be the base of those in results/run/model; put")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": 3, "sha256": "x"}'])
def test_a_malformed_record_of_the_base_is_named(home, text):
    Path("results/run/model/base.json").write_text(text)
    refuse("results/run/model/base.json: missing or malformed; train again with `save: merged`")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.popitem(), "the adapters are of another model"),
        (lambda weights: next(iter(weights.values())).fill_(torch.nan), "infinite or NaN weights"),
        (lambda weights: weights.clear(), "are not of the same LoRA adapters"),
    ],
)
def test_damaged_adapters_are_refused(home, change, message):
    path = Path("results/run/model/adapter_model.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    refuse(message)


@pytest.mark.parametrize("text", ["", "{}", '{"peft_type": "IA3"}', '{"peft_type": "LORA"}'])
def test_a_malformed_config_of_adapters_is_refused(home, text):
    Path("results/run/model/adapter_config.json").write_text(text)
    refuse("results/run/model: cannot load the adapters (")
