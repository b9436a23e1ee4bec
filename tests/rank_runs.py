"""Short runs of several processes, each on one thread, and the same runs of one process.

`torchrun` starts this file; every process makes the runs that a file of JSON lists, in turn.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from tiny_models import CYCLE, write_data
from training_runs import run_stage

from rere.config.decoding import Bigrec
from rere.config.evaluation import Decoding, Recommend
from rere.config.rl import RlOptions
from rere.config.training import PreferenceOptions, SftOptions, Training
from rere.evaluation.decode import decode
from rere.evaluation.recommend import recommend
from rere.ranks import join
from rere.training.checkpoints import Checkpoints
from rere.training.trainer import Trainer

SFT = SftOptions(
    learning_rate=0.1, batch_size=16, rows_per_pass=4, epochs=0.5, validations=1, valid_rows=9
)
PREFERENCE = PreferenceOptions(
    learning_rate=0.1,
    steps=3,
    batch_size=8,
    rows_per_pass=2,
    validations=1,
    valid_rows=9,
    num_beams=4,
)
RL = RlOptions(
    learning_rate=0.1,
    steps=3,
    prompts=8,
    rows_per_pass=2,
    group_size=4,
    beta=0.1,
    validations=1,
    valid_rows=9,
)


def change(options: Training, **changes: Any) -> Training:
    return type(options).model_validate(options.model_dump() | changes)


SKIPPING = {"beta": 0.0, "reward": ["rule"], "skip_zero_advantage": "exact"}
RUNS = {
    "sft": SFT,
    "sft_catalogue": change(SFT, scoring="catalogue"),
    "s_dpo": PREFERENCE,
    "sprec": change(PREFERENCE, algorithm="sprec", iterations=1, steps=4),
    "rl": RL,
    # Three prompts a rank and one more, so that the ranks' passes are unequal in number.
    "rl_skipping": change(RL, prompts=7, rows_per_pass=1, **SKIPPING),
    "rl_dynamic_sampling": change(RL, objective="dapo", dynamic_sampling=2, **SKIPPING),
    "rl_two_updates": change(RL, objective="gspo", updates=2, scoring="catalogue"),
    "rl_moving_reference": change(RL, sync_interval=1, sync_mix=0.6, steps=4),
    "rl_iid": change(RL, rollout="iid", scoring="catalogue", advantage="global"),
    "rl_lora": change(RL, lora_rank=4),
}
"""Runs of three steps, or the fewest that show what they are for."""
PREDICTIONS = ["recommend", "bigrec"]
SHARDED = {f"{name}_sharded": change(options, sharded=True) for name, options in RUNS.items()}
RUNS |= SHARDED
OF_THREE = ["sft", "rl_skipping"]


def start(processes: int, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start what `torchrun` does with these arguments."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def make_runs(processes: int, names: list[str], init: Path, data: Path, output: Path) -> None:
    """Make runs by `processes` processes, each in a folder of its name."""
    spec = output / "runs.json"
    spec.write_text(json.dumps([names, str(init), str(data)]))
    process = start(processes, __file__, spec)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text


def create_optimizer(self: Trainer, model: Any = None) -> torch.optim.Optimizer:
    """Plain gradient descent, so that weights differ no more than gradients do."""
    self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.args.learning_rate)
    return self.optimizer


def keep_last(self: Trainer, *args: Any, **more: Any) -> bool:
    """Keep the weights of the last validation, whatever it was."""
    return self.state.global_step > 0 and determine_best(self, *args, **more)


if __name__ == "__main__":
    determine_best = Trainer._determine_best_metric
    Trainer._determine_best_metric = keep_last
    Trainer.create_optimizer = create_optimizer
    spec = Path(sys.argv[1])
    names, init, data = json.loads(spec.read_text())
    is_first, write, steps = join().is_first, Checkpoints.write, []
    # The clocks of the other ranks.
    Checkpoints.is_due = lambda *_: not is_first
    Checkpoints.write = lambda self, step, best: steps.append(step) or write(self, step, best)
    for name in names:
        run_stage(RUNS[name], Path(init), Path(data), 0, spec.parent / name)
        if is_first:
            (spec.parent / f"{name}.steps").write_text(json.dumps(steps))
        steps.clear()
    # Eleven rows in three batches.
    rows = [([*range(row % 3 + 1)], row % 8) for row in range(11)]
    test = write_data(Path(mkdtemp()), CYCLE, test=rows)
    recommend(Recommend(batch_size=4), Path(init), test, 0, spec.parent / "recommend.parquet")
    evaluation = Decoding(batch_size=4)
    decode(Bigrec(), evaluation, Path(init), test, 0, spec.parent / "bigrec.parquet")
