"""Data, models and runs that tests of training share. Each is made once."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CYCLE, write_data, write_fixed_model
from training_runs import EVERY_STEP, RESUMED, SHORT, run_stage
from transformers import BertConfig, BertModel, BertTokenizer

from rere.backbones import backbone
from rere.config.backbones import Tiny
from rere.config.training import Training
from rere.training.callbacks import StepLog
from rere.training.groups import RewardedGroups, Rollouts
from rere.training.rl import RlTrainer
from rere.training.trainer import Trainer

# ------------------------------------------------------------------------------- data and models


@pytest.fixture(scope="session")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the eight training rows of one step."""
    rows = [([start, (start + 1) % 8], (start + 2) % 8) for start in range(8)]
    return write_data(tmp_path_factory.mktemp("one_step"), CYCLE, train=rows, valid=rows)


@pytest.fixture(scope="session")
def dropout_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixed model with dropout, so that random states matter."""
    folder = write_fixed_model(tmp_path_factory.mktemp("dropout"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "attention_dropout": 0.1}))
    return folder


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory: pytest.TempPathFactory, cycle: Path) -> Path:
    folder = tmp_path_factory.mktemp("untrained") / "backbone"
    backbone(Tiny(vocab_size=512, hidden_size=64, num_layers=2, num_heads=4), cycle, folder)
    return folder


@pytest.fixture(scope="session")
def early_model(
    tmp_path_factory: pytest.TempPathFactory, untrained_model: Path, cycle: Path
) -> Path:
    """A model that was trained too briefly to know the cycle well.

    It generates items even unconstrained.
    """
    output = tmp_path_factory.mktemp("brief")
    run_stage(change(SHORT["sft"], {"epochs": 4.0}), untrained_model, cycle, 0, output)
    return output / "model"


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder of nine words."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "iron", "lake", "night", "train"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
    )
    BertModel(sizes).save_pretrained(folder)
    return folder


# ------------------------------------------------------------------------------------------- runs


@pytest.fixture
def home(tmp_path: Path, fixed_model: Path, cycle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with results/base and results/run, adapters that were trained on it."""
    folder = tmp_path / "home"
    shutil.copytree(fixed_model, folder / "results" / "base")
    monkeypatch.chdir(folder)
    adapters = {"lora_rank": 4, "learning_rate": 1e-2, "save": "adapters"}
    options = change(SHORT["sft"], adapters)
    run_stage(options, Path("results/base"), cycle, 0, Path("results/run"))
    return folder


@pytest.fixture(autouse=True)
def start_never_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs keep weights that they trained, since few of them are long enough to improve."""
    determine = Trainer._determine_best_metric

    def determine_later(self: Trainer, *args: Any, **more: Any) -> bool:
        return self.state.global_step > 0 and determine(self, *args, **more)

    monkeypatch.setattr(Trainer, "_determine_best_metric", determine_later)


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, cycle: Path, fixed_model: Path
) -> Callable[..., Path]:
    """A function that returns the folder of a stage's run on the cycle, with changed options.

    Tests that ask for the same run share it, so they must not write to it.
    """
    folders: dict[str, Path] = {}

    def trained(stage: str, init: Path = fixed_model, seed: int = 0, **changes: Any) -> Path:
        key = repr((stage, init, seed, sorted(changes.items())))
        if key not in folders:
            output = tmp_path_factory.mktemp(stage)
            run_stage(change(SHORT[stage], changes), init, cycle, seed, output)
            folders[key] = output
        return folders[key]

    return trained


@pytest.fixture
def run(tmp_path: Path, cycle: Path, fixed_model: Path) -> Callable[..., Path]:
    """The same for one test, which may spy on the run. `name` is that of the folder."""

    def run(stage: str, name: str, seed: int = 0, **changes: Any) -> Path:
        run_stage(change(SHORT[stage], changes), fixed_model, cycle, seed, tmp_path / name)
        return tmp_path / name

    return run


def change(options: Training, changes: dict[str, Any]) -> Training:
    """Return the options with changes, validated."""
    return type(options).model_validate(options.model_dump() | changes)


@pytest.fixture(scope="session")
def learned_cycle(trained: Callable[..., Path], untrained_model: Path) -> Path:
    """An SFT run long enough to learn the cycle."""
    return trained("sft", untrained_model, epochs=12.0, validations=4)


@pytest.fixture(scope="session")
def improved_ranks(trained: Callable[..., Path], early_model: Path) -> Path:
    """An RL run with all eight items in each group, long enough to improve the target's rank."""
    return trained("rl", early_model, steps=40, group_size=8, beta=1e-3, validations=4)


@pytest.fixture(scope="session")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, dropout_model: Path, cycle: Path
) -> Callable[[str], Path]:
    """A function that returns the folder of an uninterrupted run with RESUMED's options."""
    folder = tmp_path_factory.mktemp("uninterrupted")

    def run(name: str) -> Path:
        if not (folder / name).exists():
            run_stage(RESUMED[name], dropout_model, cycle, 0, folder / name)
        return folder / name

    return run


@pytest.fixture
def interrupt(
    monkeypatch: pytest.MonkeyPatch, dropout_model: Path, cycle: Path
) -> Callable[..., None]:
    """A function that starts a run and interrupts it in a step, with a checkpoint of each step."""

    def run(
        name: str,
        output: Path,
        step: int,
        options: Training | None = None,
        init: Path = dropout_model,
    ) -> None:
        def on_step_end(self, args, state, control, **_):
            if state.global_step == step:
                raise KeyboardInterrupt

        options = (options or RESUMED[name]).model_copy(update=EVERY_STEP)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(StepLog, "on_step_end", on_step_end)
            run_stage(options, init, cycle, 0, output)

    return run


# ------------------------------------------------------------------------------------ own rewards

OWN = """
def early(groups):
    "Items with a low number, the likelier the better."
    return (groups.item < 2).float() - 0.1 * groups.log_prob
"""
BROKEN = """
import torch
def number(groups): return 1.0
def integers(groups): return groups.item
def by_prompt(groups): return torch.zeros(len(groups.item))
def infinite(groups): return 1 / groups.hit.float()
"""


@pytest.fixture
def own_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules `own_rewards` and `broken_rewards`, which can be imported."""
    (tmp_path / "own_rewards.py").write_text(OWN)
    (tmp_path / "broken_rewards.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("own_rewards", "broken_rewards"):
        sys.modules.pop(name, None)


# ------------------------------------------------------------------------------------------ spies


@pytest.fixture
def plain_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """RL by plain gradient descent, so that weights reveal even small gradients."""

    def create_optimizer(self, model=None):
        rate = self.args.learning_rate
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate)
        return self.optimizer

    monkeypatch.setattr(RlTrainer, "create_optimizer", create_optimizer)


@pytest.fixture
def rolled_out(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The row ids of each rollout, in order."""
    row_ids: list[list[int]] = []
    call: Callable[..., RewardedGroups] = Rollouts.__call__

    def spy(self, policy, inputs, *more):
        row_ids.append(inputs["row_id"])
        return call(self, policy, inputs, *more)

    monkeypatch.setattr(Rollouts, "__call__", spy)
    return row_ids
