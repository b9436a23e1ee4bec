"""The `baseline` stage: a method without a language model, and its predictions."""

from pathlib import Path

from rere.baselines.item_knn import ItemKnnModel
from rere.baselines.model_folder import FittedBaseline, make_model, save_baseline
from rere.baselines.ranking import Model, rank_top
from rere.config.baselines import ItemKnn, Popularity, RepeatLast, Sequential
from rere.config.evaluation import Evaluation
from rere.data.dataset import read_items, read_split
from rere.errors import InputError, out_of_memory
from rere.evaluation.predictions import read_raw_ids, write_predictions
from rere.files import replacing_all


def baseline(
    options: Popularity | RepeatLast | ItemKnn | Sequential,
    evaluation: Evaluation,
    data: Path,
    seed: int,
    output: Path,
) -> None:
    """Fit a model and rank the catalogue for the test rows of the data set in folder `data`.

    Writes the predictions to `output` and the folder model/ beside it. A sequential model also
    writes log.jsonl and the files of `rere.data.factors`. A failure leaves none of them. Items of a
    row's history stay in the ranking. Training does not depend on the split test. Raises InputError
    for malformed data or fewer than two items.
    """
    items = read_items(data)
    if len(items) < 2:
        raise InputError(
            f"{data / 'items.parquet'}: has {len(items)} items and a ranking needs two; "
            "preprocess with a smaller core"
        )
    rows = read_split(data, "test", evaluation.rows)  # before training, which takes minutes
    raw_ids = read_raw_ids(data, rows, items)
    model: Model
    names = [output.name, "model"]
    if isinstance(options, Sequential):
        # Imported here: torch takes seconds to import, and other baselines do not need it.
        from rere.baselines.sequential import fit, make_factors
        from rere.data.factors import FACTORS, TEST_FACTORS

        train, valid = read_split(data, "train"), read_split(data, "valid")
        names += ["log.jsonl", FACTORS, TEST_FACTORS]
    elif isinstance(options, ItemKnn):
        model = ItemKnnModel.fit(options.neighbours, items, read_split(data, "train"))
    else:
        model = make_model(options, None, items["count"].to_numpy(), {}, "cpu")
    paths = [output.with_name(name) for name in names]
    with replacing_all(paths) as (predictions, folder, *others):
        if isinstance(options, Sequential):
            log, factors, test_factors = others
            with (
                log.open("w", encoding="utf-8") as file,
                out_of_memory("lower batch_size or hidden_size"),
            ):
                model = fit(options, len(items), train, valid, seed, file)
            make_factors(model, train).save(factors)
            make_factors(model, rows).save(test_factors)
        save_baseline(FittedBaseline(options, model, items), folder)
        ranked, scores = rank_top(model, rows["history"], evaluation.list_length)
        write_predictions(predictions, rows, ranked.tolist(), scores.tolist(), raw_ids)
