"""DPO's loss and gradient by TRL, an independent implementation: tests/records/trl.json.

Not a test: it made the record that test_training_preference.py compares with, in an environment of
its own, of TRL and what it needs beside this project's requirements.

    PYTHONPATH=.:tests python tests/records/trl_run.py > tests/records/trl.json
"""

import json
import tempfile
from importlib.metadata import version

from datasets import Dataset
from tiny_models import precise, tokenizer
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

BETA = 0.5
ROWS = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [2, 3, 1], "rejected_ids": [2, 4, 4, 1]},
    {"prompt_ids": [9, 8, 7, 6, 5], "chosen_ids": [10, 1], "rejected_ids": [11, 12, 13, 1]},
    {"prompt_ids": [14], "chosen_ids": [3, 3, 3, 3, 1], "rejected_ids": [2, 1]},
]

policy, reference = precise("qwen2", seed=0), precise("qwen2", seed=1)
trainer = DPOTrainer(
    model=policy,
    ref_model=reference,
    args=DPOConfig(
        output_dir=tempfile.mkdtemp(), beta=BETA, use_cpu=True, bf16=False, report_to="none"
    ),
    train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
    processing_class=tokenizer("qwen2"),
)
policy.eval()
loss = trainer._compute_loss(policy, DataCollatorForPreference(pad_token_id=0)(ROWS), False)
loss.backward()
print(
    json.dumps(
        {
            "versions": {name: version(name) for name in ("trl", "torch", "transformers")},
            "beta": BETA,
            "rows": ROWS,
            "loss": loss.item(),
            "gradient_norms": {
                name: weight.grad.norm().item() for name, weight in policy.named_parameters()
            },
        }
    )
)
