"""RecBole 1.2.1 on the splits of a data set: one model, one seed, a line of JSON.

Not a test: it made recbole.json, in an environment of its own whose versions stand there.

    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 python recbole_run.py DATA MODEL SEED [OPTION=VALUE ...]

It trains on the rows of train, selects by NDCG@10 on those of valid and scores those of test,
ranking the whole catalogue, with every item of the catalogue a candidate.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

FIELDS = {
    "user_id": "user_id:token",
    "history": "item_id_list:token_seq",
    "target": "item_id:token",
}


def write_atomic(data: Path, folder: Path) -> None:
    """The splits of `data` as RecBole's benchmark files."""
    for split in ("train", "valid", "test"):
        rows = pl.read_parquet(data / f"{split}.parquet").select(*FIELDS)
        history = pl.col("history").cast(pl.List(pl.String)).list.join(" ")
        rows = rows.with_columns(history).rename(FIELDS)
        rows.write_csv(folder / f"splits.{split}.inter", separator="\t")
    items = pl.read_parquet(data / "items.parquet").select(pl.col("item_id").alias("item_id:token"))
    items.write_csv(folder / "splits.item", separator="\t")


def main(data: Path, name: str, seed: int, options: dict) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "splits"
        folder.mkdir()
        write_atomic(data, folder)
        fixed = {
            "data_path": temporary,
            "checkpoint_dir": temporary,
            "benchmark_filename": ["train", "valid", "test"],
            "alias_of_item_id": ["item_id_list"],
            "load_col": {"inter": ["user_id", "item_id_list", "item_id"], "item": ["item_id"]},
            "MAX_ITEM_LIST_LENGTH": 10,
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "eval_args": {"mode": "full", "order": "TO", "split": {"LS": "valid_and_test"}},
            "metrics": ["NDCG", "Hit"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "metric_decimal_place": 6,
            "eval_batch_size": 1_000_000,
            "seed": seed,
            "use_gpu": False,
            "show_progress": False,
            "state": "WARNING",
        }
        config = Config(model=name, dataset="splits", config_dict=fixed | options)
        init_seed(seed, reproducibility=True)
        dataset = create_dataset(config)
        train, valid, test = data_preparation(config, dataset)
        init_seed(seed, reproducibility=True)
        model = get_model(name)(config, train.dataset)
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
        epochs, seconds = [], []

        def after_epoch(epoch: int, score: float) -> None:
            epochs.append(score)
            seconds.append(time.process_time())

        started = time.process_time()
        best, _ = trainer.fit(train, valid, show_progress=False, callback_fn=after_epoch)
        scored = trainer.evaluate(test, load_best_model=True)
        record = {
            "model": name,
            "seed": seed,
            "items": dataset.item_num - 1,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "epochs": len(epochs),
            "valid_NDCG@10": best,
            "test_NDCG@10": scored["ndcg@10"],
            "test_HR@10": scored["hit@10"],
            "cpu_seconds_an_epoch": (seconds[-1] - started) / len(epochs),
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    given = dict(word.split("=") for word in sys.argv[4:])
    main(
        Path(sys.argv[1]),
        sys.argv[2],
        int(sys.argv[3]),
        {key: json.loads(value) for key, value in given.items()},
    )
