"""What a study costs: its jobs, its tables and their sum, and the tables that a budget pays."""

from typing import Any

from tabulate import tabulate

from rere.config.run import MAX_CHECKPOINTS
from rere.errors import InputError
from rere.planning.hardware import GPUS
from rere.planning.study import Row

HOUR = 3600
MACHINES = {**{name: name for name in GPUS}, "cpu": "this CPU"}
"""Machines of a plan, and their names in words."""


def hours(row: Row, machine: str) -> float | None:
    """Hours of a seed of a job on one GPU, or on the CPU; None where it does not fit."""
    seconds = (row["cpu"] if machine == "cpu" else row["gpus"][machine])["seconds"]
    return None if seconds is None else float(seconds) / HOUR


def seeds(row: Row) -> set[int]:
    """The seeds of a job, over all tables."""
    return {seed for each in row["tables"].values() for seed in each}


def cost(rows: list[Row], machine: str, tables: set[str]) -> float | None:
    """Hours of all that some tables need, each job once; None if a job does not fit."""
    sums = 0.0
    for row in rows:
        wanted = {seed for table in tables for seed in row["tables"].get(table, ())}
        if wanted:
            each = hours(row, machine)
            if each is None:
                return None
            sums += len(wanted) * each
    return sums


def disk(rows: list[Row]) -> float:
    """Bytes: backbones, trained models, and the checkpoints of the largest run."""
    backbones = {row["backbone"]: row["weights"] for row in rows}
    trained = sum(len(seeds(row)) * row["weights"] for row in rows if row["checkpoint"])
    return float(
        sum(backbones.values())
        + trained
        + MAX_CHECKPOINTS * max((row["checkpoint"] for row in rows), default=0)
    )


def affordable(rows: list[Row], tables: list[str], machine: str, budget: float) -> list[str]:
    """The tables that `budget` hours pay: taken in order, one that is too much is left out.

    A job that an earlier one of them needs, too, costs nothing again. Tables of baselines alone are
    left out. Raises InputError if no table is paid for.
    """
    chosen: list[str] = []
    planned = [table for table in tables if any(table in row["tables"] for row in rows)]
    for table in planned:
        total = cost(rows, machine, {*chosen, table})
        if total is not None and total <= budget:
            chosen.append(table)
    if not chosen:
        alone = {table: cost(rows, machine, {table}) for table in planned}
        fitting = {table: each for table, each in alone.items() if each is not None}
        if not fitting:
            fault = "no table fits into its memory" if planned else "no table has a language model"
            raise InputError(f"--on {machine}: {fault}; leave --budget out or take another")
        cheapest = min(fitting, key=fitting.__getitem__)
        raise InputError(
            f"--budget {budget:g}: pays for no table; the cheapest, {cheapest}, takes "
            f"{fitting[cheapest]:.2g} hours ({MACHINES[machine]})"
        )
    return chosen


def as_text(rows: list[Row], tables: list[str]) -> str:
    """A line for each job, with all its seeds, then for each table, and for all."""
    jobs = [
        [
            *(row[name] for name in ("dataset", "backbone", "method")),
            row["stage"] + row["evaluation"],
            len(seeds(row)),
            f"{len(seeds(row)) * row['tokens'] / 1e6:,.1f}",
            f"{len(seeds(row)) * row['operations'] / 1e15:,.3g}",
            f"{row['operations_without_sharing'] / row['operations']:.1f}",
            f"{row['gpus']['A100']['peak'] / 1e9:.1f}",
            *(shown(hours(row, each), len(seeds(row))) for each in MACHINES),
        ]
        for row in rows
    ]
    columns = [
        "data set",
        "backbone",
        "method",
        "stage",
        "seeds",
        "10^6 tokens",
        "10^15 operations",
    ]
    columns += ["x without sharing", "GB", *(f"{name} h" for name in MACHINES.values())]
    totals = [
        [table, sum(table in row["tables"] for row in rows)]
        + [shown(cost(rows, each, {table})) for each in MACHINES]
        for table in tables
    ]
    totals.append(["all", len(rows), *(shown(cost(rows, each, set(tables))) for each in MACHINES)])
    heads = ["table", "jobs", *(f"{name} h" for name in MACHINES.values())]
    return "\n".join(
        [
            table_of(jobs, columns),
            "",
            table_of(totals, heads),
            "",
            f"Disk: {disk(rows) / 1e9:,.1f} GB, with the checkpoints of one run at a time.",
            "Left out: baselines, data, metrics. Hours on a GPU are GPU-hours, by assumed shares "
            "of its peak; - does not fit.",
        ]
    )


def shown(hours: float | None, factor: int = 1) -> str:
    """Hours in words."""
    return "-" if hours is None else f"{factor * hours:,.2f}"


def table_of(rows: list[list[Any]], columns: list[str]) -> str:
    """A plain table with numbers on the right."""
    return str(tabulate(rows, columns, "simple", disable_numparse=True))
