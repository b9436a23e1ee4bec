"""Memory that runs out, and weights that are no numbers, stop a stage with one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CYCLE, write_cycle, write_data, write_fixed_model, write_gguf

from rere import Recommender
from rere.backbones import backbone, is_finite
from rere.baselines import sequential
from rere.baselines.baseline import baseline
from rere.config.backbones import Pretrained
from rere.config.baselines import Sasrec
from rere.config.decoding import Bigrec
from rere.config.evaluation import Decoding, Evaluation, Recommend
from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions
from rere.errors import InputError, out_of_memory
from rere.evaluation import decode as decode_module
from rere.evaluation import recommend as recommend_module
from rere.evaluation import title_ranker
from rere.evaluation.decode import decode
from rere.evaluation.recommend import recommend
from rere.training import preference as preference_module
from rere.training import rl as rl_module
from rere.training import sft as sft_module
from rere.training.preference import preference
from rere.training.rl import rl
from rere.training.sft import sft

PETABYTE = 1 << 50


def take_torch_memory(*_: Any, **__: Any) -> None:
    torch.empty(PETABYTE, dtype=torch.uint8)


def take_numpy_memory(*_: Any, **__: Any) -> None:
    np.empty(PETABYTE, dtype=np.uint8)


def take_python_memory(*_: Any, **__: Any) -> None:
    bytearray(PETABYTE)


def take_device_memory(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


def take_cublas_memory(*_: Any, **__: Any) -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


TAKERS = [
    take_torch_memory,
    take_numpy_memory,
    take_python_memory,
    take_device_memory,
    take_cublas_memory,
]
STAGES = {
    "sft": (sft, sft_module, "token_log_probs", SftOptions(batch_size=8, rows_per_pass=4)),
    "preference": (
        preference,
        preference_module,
        "token_log_probs",
        PreferenceOptions(batch_size=8, rows_per_pass=4),
    ),
    "rl": (rl, rl_module, "token_scores", RlOptions(prompts=8, rows_per_pass=4, group_size=4)),
}


@pytest.mark.parametrize("take", TAKERS)
def test_every_kind_is_recognised(take):
    with pytest.raises(InputError) as refused, out_of_memory("lower batch_size"):
        take()
    assert str(refused.value).startswith("out of memory; lower batch_size (")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), KeyError("memory")])
def test_other_errors_are_not(error):
    with pytest.raises(type(error)) as passed, out_of_memory("lower batch_size"):
        raise error
    assert passed.value is error


# --------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize("stage", STAGES)
def test_training_names_its_options(stage, tmp_path, monkeypatch):
    run, module, name, options = STAGES[stage]
    data, init = write_cycle(tmp_path / "data"), write_fixed_model(tmp_path / "init")
    monkeypatch.setattr(module, name, take_torch_memory)
    with pytest.raises(InputError) as refused:
        run(options, init, data, 0, tmp_path / "run")
    rows = "prompts (8)" if stage == "rl" else "batch_size (8)"
    assert str(refused.value).startswith(
        f"out of memory; lower rows_per_pass (4) or {rows}, or set gradient_checkpointing: true; "
        "`rere plan` says what fits ("
    )
    assert not (tmp_path / "run" / "model").exists()


def write_test_rows(folder: Path) -> tuple[Path, Path]:
    """A data folder with test rows, and a model."""
    rows = [([item], (item + 1) % 8) for item in range(8)]
    data = write_data(folder / "data", CYCLE, train=rows, valid=rows, test=rows)
    return data, write_fixed_model(folder / "init")


def test_recommending_names_its_options(tmp_path, monkeypatch):
    data, init = write_test_rows(tmp_path)
    monkeypatch.setattr(recommend_module, "beam_search", take_torch_memory)
    message = r"^out of memory; lower batch_size \(now 3 rows per pass\) or num_beams \("
    with pytest.raises(InputError, match=message):
        recommend(Recommend(batch_size=3), init, data, 0, tmp_path / "run" / "p.parquet")
    assert not (tmp_path / "run").exists()


def test_decoding_names_its_options(tmp_path, monkeypatch):
    data, init = write_test_rows(tmp_path)
    monkeypatch.setattr(decode_module, "generate_greedy", take_numpy_memory)
    with pytest.raises(InputError, match=r"^out of memory; lower batch_size \(now 2 rows"):
        decode(Bigrec(), Decoding(batch_size=2), init, data, 0, tmp_path / "run" / "p.parquet")


def test_one_recommendation_names_its_options(tmp_path, monkeypatch):
    data, init = write_test_rows(tmp_path)
    options = SftOptions(batch_size=8, rows_per_pass=8, epochs=0.1, validations=1)
    sft(options, init, data, 0, tmp_path / "run")
    recommender = Recommender(tmp_path / "run" / "model")
    monkeypatch.setattr(title_ranker, "beam_search", take_torch_memory)
    message = r"^out of memory; lower batch_size \(now 32 rows per pass\), num_beams or top \("
    with pytest.raises(InputError, match=message):
        recommender.recommend([CYCLE[0]], 3)


def test_a_baseline_names_its_options(tmp_path, monkeypatch):
    data, _ = write_test_rows(tmp_path)
    monkeypatch.setattr(sequential, "step", take_torch_memory)
    with pytest.raises(InputError, match=r"^out of memory; lower batch_size or hidden_size \("):
        baseline(Sasrec(), Evaluation(), data, 0, tmp_path / "run" / "p.parquet")


# ------------------------------------------------------------------- weights that are no numbers


def write_broken_model(
    folder: Path, name: str, value: float, dtype: torch.dtype = torch.float32
) -> Path:
    """A model whose last weight of one tensor is `value`."""
    write_fixed_model(folder)
    path = folder / "model.safetensors"
    weights = {key: weight.to(dtype) for key, weight in load_file(path).items()}
    weights[name].view(-1)[-1] = value
    save_file(weights, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.bias"]
)
def test_a_backbone_with_broken_weights_is_refused(name, value, dtype, tmp_path):
    broken = write_broken_model(tmp_path / "broken", name, value, dtype)
    with pytest.raises(InputError) as refused:
        backbone(Pretrained(model=str(broken)), None, tmp_path / "backbone")
    assert str(refused.value) == (
        f"{broken}: cannot load a language model ({name} has infinite or NaN weights); download or "
        "train it again, or take another"
    )
    assert not (tmp_path / "backbone").exists()


def test_a_gguf_file_with_broken_weights_is_refused(tmp_path):
    write_gguf(tmp_path / "model.gguf", **{"model.norm.weight": float("nan")})
    options = Pretrained(model=str(tmp_path), gguf_file="model.gguf")
    with pytest.raises(InputError, match=r"\(model.norm.weight has infinite or NaN weights"):
        backbone(options, None, tmp_path / "backbone")
    assert not (tmp_path / "backbone").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_an_initial_model_with_broken_weights_is_refused(stage, tmp_path):
    run, _, _, options = STAGES[stage]
    name = "model.layers.0.mlp.up_proj.weight"
    broken = write_broken_model(tmp_path / "broken", name, float("nan"))
    with pytest.raises(InputError, match=f"{name} has infinite or NaN weights"):
        run(options, broken, write_cycle(tmp_path / "data"), 0, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_finite_weights():
    assert is_finite(torch.tensor([3e38, -3e38]))
    assert is_finite(torch.tensor([]))
    assert not is_finite(torch.tensor([[0.0, float("nan")]]))
