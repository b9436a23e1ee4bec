"""What happens beside the steps of training: step log, validations, collapse, trackers."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.trainer_callback import ExportableState

from rere.errors import InputError
from rere.files import naming_full_disk
from rere.progress import progress


class StepLog(TrainerCallback):
    """Writes a JSON line per step and validation to `path`; shows a progress bar."""

    bar: Any = None

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.bar = progress(state.max_steps, self.label, "step", state.global_step)
        self.path.touch()

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float], **_: Any
    ) -> None:
        with naming_full_disk(self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        shown = {k: v for k, v in logs.items() if k in ("loss", "reward") or k.startswith("eval_")}
        self.bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()}, refresh=False)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.bar.update(1)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class ValidationSteps(TrainerCallback):
    """Makes `count` validations, evenly over the run, the last one after the last step.

    With fewer steps there is one per step. That of the initial model comes on top.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step, total = state.global_step, state.max_steps
        is_due = step * self.count // total > (step - 1) * self.count // total
        control.should_evaluate = control.should_evaluate or is_due


class CollapseStop(TrainerCallback, ExportableState):
    """Stops RL after `limit` steps in a row in which all groups have zero advantage."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.steps = limit, 0

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float], **_: Any
    ) -> None:
        if "zero_advantage" not in logs:
            return
        self.steps = self.steps + 1 if logs["zero_advantage"] == 1 else 0
        if self.limit is None or self.steps < self.limit:
            return
        if logs["invalid"] == 1:
            seen, remedy = "no candidate is an item", "take a constrained rollout, a longer SFT"
        else:
            distinct = f"{logs['distinct']:.2g} distinct items per group"
            seen = f"hit rate {logs['hit_rate']:.2g}, {distinct}"
            remedy = "lower learning_rate or raise beta; or raise prompts or group_size"
        raise InputError(
            f"in the last {self.steps} steps, up to step {state.global_step}, all groups had zero "
            f"advantage, so nothing was learnt ({seen}); {remedy}, or set collapse_steps: null"
        )

    def state(self) -> dict[str, Any]:
        return {"args": {"limit": self.limit}, "attributes": {"steps": self.steps}}


def tracker_callbacks(names: Sequence[str], output: Path) -> list[TrainerCallback]:
    """Callbacks that also send the step log to TensorBoard or Weights & Biases.

    Raises InputError if a package is missing.
    """
    callbacks = []
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"report_to: {name} is not installed; pip install {name}")
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            callbacks.append(TensorBoardCallback(SummaryWriter(str(output / "tensorboard"))))
        if name == "wandb":
            callbacks.append(WandbCallback())
    return callbacks
