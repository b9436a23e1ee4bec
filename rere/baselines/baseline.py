"""The `baseline` stage: predictions of a method without a language model."""

from pathlib import Path

from rere.baselines.item_knn import item_knn
from rere.baselines.trivial import popularity, repeat_last
from rere.config.baselines import ItemKnn, Popularity, RepeatLast, Sequential
from rere.config.evaluation import Evaluation
from rere.data.dataset import read_items, read_split
from rere.errors import InputError, out_of_memory
from rere.evaluation.predictions import write_predictions
from rere.files import replacing_all


def baseline(
    options: Popularity | RepeatLast | ItemKnn | Sequential,
    evaluation: Evaluation,
    data: Path,
    seed: int,
    output: Path,
) -> None:
    """Rank the catalogue for the test rows of the data set in folder `data`.

    Writes the predictions to `output`. A sequential model also writes log.jsonl and the files of
    `rere.data.factors` beside it. Items of a row's history stay in the ranking. Training does not
    depend on the split test. Raises InputError for malformed data or fewer than two items.
    """
    items = read_items(data)
    if len(items) < 2:
        raise InputError(
            f"{data / 'items.parquet'}: has {len(items)} items and a ranking needs two; "
            "preprocess with a smaller core"
        )
    rows = read_split(data, "test", evaluation.rows)  # before training, which takes minutes
    length = evaluation.list_length
    if isinstance(options, Sequential):
        # Imported here: torch takes seconds to import, and other baselines do not need it.
        from rere.baselines.sequential import fit, make_factors, rank_top
        from rere.data.factors import FACTORS, TEST_FACTORS

        train, valid = read_split(data, "train"), read_split(data, "valid")
        beside = [output.with_name(name) for name in ("log.jsonl", FACTORS, TEST_FACTORS)]
        with replacing_all(beside) as (log, factors, test_factors):
            with (
                log.open("w", encoding="utf-8") as file,
                out_of_memory("lower batch_size or hidden_size"),
            ):
                model = fit(options, len(items), train, valid, seed, file)
            make_factors(model, train).save(factors)
            make_factors(model, rows).save(test_factors)
            ranked, scores = (best.tolist() for best in rank_top(model, rows["history"], length))
            write_predictions(output, rows, ranked, scores)
    else:
        match options:
            case Popularity():
                ranked, scores = popularity(items, rows, length)
            case RepeatLast():
                ranked, scores = repeat_last(items, rows, length)
            case ItemKnn():
                train = read_split(data, "train")
                ranked, scores = item_knn(options.neighbours, items, train, rows, length)
        write_predictions(output, rows, ranked, scores)
