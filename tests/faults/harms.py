"""Ways to harm a file, by kind of file. Each is a function of its path and a random generator."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from safetensors.torch import load_file, save_file

Harm = Callable[[Path, random.Random], None]


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


def empty(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


def cut(path: Path, _: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path, _: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def scramble(path: Path, generator: random.Random) -> None:
    path.write_bytes(generator.randbytes(path.stat().st_size))


def make_folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def dangle(path: Path, _: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


ANY: dict[str, Harm] = {
    "missing": remove,
    "empty": empty,
    "zeros of the same size": zero,
    "random bytes of the same size": scramble,
    "a folder in its place": make_folder,
    "a dangling link in its place": dangle,
}


def edit_frame(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Harm:
    def harm(path: Path, _: random.Random) -> None:
        change(pl.read_parquet(path)).write_parquet(path)

    return harm


def column(frame: pl.DataFrame) -> str:
    """The column that faults harm: an id, or else the first."""
    return next((name for name in ("target", "item_id") if name in frame.columns), frame.columns[0])


def set_first(frame: pl.DataFrame, value: int | None) -> pl.DataFrame:
    first, name = pl.int_range(pl.len()) == 0, column(frame)
    return frame.with_columns(
        pl.when(first).then(pl.lit(value)).otherwise(name).cast(frame[name].dtype).alias(name)
    )


PARQUET: dict[str, Harm] = {
    "cut in half": cut,
    "without an id column": edit_frame(lambda frame: frame.drop(column(frame))),
    "ids as text": edit_frame(lambda frame: frame.cast({column(frame): pl.String})),
    "ids with fractions": edit_frame(lambda frame: frame.with_columns(pl.col(column(frame)) + 0.5)),
    "no rows": edit_frame(lambda frame: frame.clear()),
    "a null id": edit_frame(lambda frame: set_first(frame, None)),
    "a negative id": edit_frame(lambda frame: set_first(frame, -1)),
    "an id beyond the catalogue": edit_frame(lambda frame: set_first(frame, 10**6)),
    "a row twice": edit_frame(lambda frame: pl.concat([frame, frame[:1]])),
}


def write_text(text: str) -> Harm:
    return lambda path, _: path.write_text(text) and None


def edit_json(change: Callable[[dict], object]) -> Harm:
    def harm(path: Path, _: random.Random) -> None:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return harm


def change_numbers(value: object, change: Callable[[float], object]) -> object:
    """JSON with all its numbers changed."""
    if isinstance(value, dict):
        return {key: change_numbers(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [change_numbers(each, change) for each in value]
    return change(value) if isinstance(value, int | float) else value


JSON: dict[str, Harm] = {
    "cut in half": cut,
    "a list": write_text("[1, 2]"),
    "100,000 brackets": write_text("[" * 100_000),
    "without its keys": write_text("{}"),
    "text for every number": edit_json(lambda value: change_numbers(value, str)),
    "NaN for every number": edit_json(lambda value: change_numbers(value, lambda _: float("nan"))),
}


def edit_weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Harm:
    def harm(path: Path, _: random.Random) -> None:
        save_file({name: change(each) for name, each in load_file(path).items()}, path)

    return harm


WEIGHTS: dict[str, Harm] = {
    "cut in half": cut,
    "NaN": edit_weights(
        lambda tensor: tensor * float("nan") if tensor.is_floating_point() else tensor
    ),
    "other shapes": edit_weights(lambda tensor: tensor[:-1].contiguous()),
}
TEXT: dict[str, Harm] = {
    "one line of other columns": write_text("a,b,c,d,e,f\n"),
    "no line ends, 10 MB": lambda path, _: path.write_bytes(b"x" * 10**7) and None,
}
LINES: dict[str, Harm] = {
    "a line that is not JSON": lambda path, _: path.write_text(path.read_text() + "{\n") and None,
    "a line with a list": lambda path, _: path.write_text(path.read_text() + "[1]\n") and None,
}
KINDS = {
    ".parquet": ("parquet", PARQUET),
    ".json": ("json", JSON),
    ".safetensors": ("safetensors", WEIGHTS),
    ".jsonl": ("json lines", LINES),
    ".data": ("text", TEXT),
    ".item": ("text", TEXT),
    ".csv": ("text", TEXT),
}


def file_faults(path: str) -> dict[str, Harm]:
    """The faults of a file by name, with the kind of file that they are for."""
    kind, faults = KINDS[Path(path).suffix]
    return {f"any file: {name}": harm for name, harm in ANY.items()} | {
        f"{kind}: {name}": harm for name, harm in faults.items()
    }
