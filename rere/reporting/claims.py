"""What a study says of each claim, in Markdown, with a verdict by `rere.evaluation.claims`."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from rere.config.claims import Claim, Compared
from rere.config.evaluation import METRICS
from rere.config.run import NO_BACKBONE
from rere.errors import InputError
from rere.evaluation.claims import (
    COMPARISON_RULE,
    LOST,
    OPEN,
    RULE,
    WON,
    AdjustedDifference,
    decide,
)
from rere.evaluation.significance import (
    Difference,
    has_paired_seeds,
    holm,
    two_way_clustered_test,
    user_clustered_test,
)
from rere.files import replacing
from rere.reporting.markup import MARKDOWN
from rere.reporting.runs import ScoredRun, check_comparable, read_run
from rere.reporting.tables import MethodRuns, group_by_method, note_unimproved

Key = tuple[str, str, str]
"""Data set, backbone and method."""
RULES = "\n\n".join(
    [
        "The first of these verdicts that holds is given:",
        "\n".join(f"* **{verdict}**: {text}" for verdict, text in RULE.items()),
        COMPARISON_RULE,
        "Differences are of the claim's metric at title level over the full catalogue, in points "
        "(hundredths of the metric) and in per cent of the other method's value.",
    ]
)
"""The rule, in Markdown."""


class Pair(NamedTuple):
    """A method and another one on a data set and backbone of a table."""

    table: str
    dataset: str
    backbone: str
    method: str
    than: str


class Missing(NamedTuple):
    """A comparison that cannot be made, and why."""

    pair: Pair
    reason: str


class Made(NamedTuple):
    """A comparison of runs, before p values are adjusted."""

    pair: Pair
    metric: str
    runs: tuple[MethodRuns, MethodRuns]
    difference: Difference
    is_over_seeds: bool

    @property
    def means(self) -> list[float]:
        """The metric of both methods, means over rows and seeds."""
        return [float(metric_of(each, self.metric).mean()) for each in self.runs]

    def adjust(self, p_value: float) -> AdjustedDifference:
        """The difference with an adjusted p value."""
        return AdjustedDifference(self.difference, p_value, self.is_over_seeds)

    @property
    def hypothesis(self) -> tuple[str, ...]:
        """The metric and the runs; comparisons that share them are one hypothesis."""
        return self.metric, *(str(run.folder) for each in self.runs for run in each.runs)


class Entry(NamedTuple):
    """A claim, or its part on a data set, with its comparisons and its verdict."""

    name: str
    sentence: str
    claim: Claim
    made: list[tuple[Made, AdjustedDifference]]
    missing: list[Missing]

    @property
    def verdict(self) -> str:
        return decide([tested for _, tested in self.made], len(self.missing))

    @property
    def runs(self) -> list[ScoredRun]:
        return [run for made, _ in self.made for each in made.runs for run in each.runs]


def claims(
    declared: Mapping[str, Claim],
    runs: Sequence[tuple[str, Path]],
    data: Sequence[Path],
    output: Path,
) -> None:
    """Write the verdicts on claims, and the comparisons behind them, to `output`, a .md.

    `runs` are tables with the folder of a run each; `data` are the folders of the data sets, named
    after them. A run without metrics.json is not made yet, and its claims are not run. Raises
    InputError as `rere table` does for one that is malformed.
    """
    entries = list(compare(declared, read_tables(runs, data)))
    with replacing(output) as temporary:
        temporary.write_text(markdown(entries), encoding="utf-8")


class TableRuns(NamedTuple):
    """The runs of a table that claims compare."""

    methods: dict[Key, MethodRuns]
    unmade: dict[Key, Path]  # the first run of each that is not made


def read_tables(runs: Sequence[tuple[str, Path]], data: Sequence[Path]) -> dict[str, TableRuns]:
    """The runs of each table, each run read once."""
    folders = {path.name: path for path in data}
    known: dict[Path, ScoredRun] = {}
    tables = {}
    for table in dict.fromkeys(name for name, _ in runs):
        scored, unmade = [], {}
        for folder in dict.fromkeys(path for name, path in runs if name == table):
            if (folder / "metrics.json").is_file():
                if folder not in known:
                    known[folder] = read_run(folder, folders)
                scored.append(known[folder])
            else:
                unmade.setdefault(key_of(folder), folder)
        check_comparable(scored)
        tables[table] = TableRuns({each.key: each for each in group_by_method(scored)}, unmade)
    return tables


def key_of(folder: Path) -> Key:
    """Data set, backbone and method of a run folder that is not made: those of its path.

    Raises InputError for a path that has no seed folder below them.
    """
    for parts in (folder.parts, folder.parts[:-1]):
        if len(parts) > 3 and parts[-1].startswith("seed"):
            return parts[-4], parts[-3], parts[-2]
    raise InputError(f"{folder}: is no folder of a run; give dataset/backbone/method/seed0")


def compare(declared: Mapping[str, Claim], tables: Mapping[str, TableRuns]) -> Iterator[Entry]:
    """Yield the entries of the claims, each with adjusted p values.

    The adjustment is over all comparisons of all claims; one that several claims make counts once.
    """
    found = [
        (name, sentence, claim, [make(pair, claim.metric, tables) for pair in pairs])
        for name, claim in declared.items()
        for sentence, pairs in parts_of(claim, tables)
    ]
    made = [each for *_, pairs in found for each in pairs if isinstance(each, Made)]
    p_values = {each.hypothesis: each.difference.p_value for each in made}
    adjusted = dict(zip(p_values, holm(np.array(list(p_values.values()))).tolist(), strict=True))
    for name, sentence, claim, pairs in found:
        tested = [
            (each, each.adjust(adjusted[each.hypothesis]))
            for each in pairs
            if isinstance(each, Made)
        ]
        missing = [each for each in pairs if isinstance(each, Missing)]
        yield Entry(name, sentence, claim, tested, missing)


def parts_of(claim: Claim, tables: Mapping[str, TableRuns]) -> Iterable[tuple[str, list[Pair]]]:
    """The sentence and pairs of a claim, or of its part on each data set."""
    pairs = list(dict.fromkeys(itertools.chain(*(pairs_of(c, tables) for c in claim.comparisons))))
    datasets = dict.fromkeys(pair.dataset for pair in pairs)
    if not claim.each_dataset or not pairs:
        return [(claim.sentence, pairs)]
    return [
        (f"{claim.sentence} ({dataset})", [pair for pair in pairs if pair.dataset == dataset])
        for dataset in datasets
    ]


def pairs_of(compared: Compared, tables: Mapping[str, TableRuns]) -> list[Pair]:
    """The pairs of methods that are compared, on each data set and backbone.

    Two methods without a backbone are one pair per data set. The data sets and backbones of a table
    that is not there are unknown, and `?` in the pair.
    """
    pairs = []
    known = tables.get(compared.table)
    found = {*known.methods, *known.unmade} if known else set()
    for dataset, than in itertools.product(compared.datasets or ["?"], compared.than):
        names = [compared.method, than]
        is_plain = all((dataset, NO_BACKBONE, name) in found for name in names)
        for backbone in [NO_BACKBONE] if is_plain else compared.backbones or ["?"]:
            pairs.append(Pair(compared.table, dataset, backbone, *names))
    return pairs


def make(pair: Pair, metric: str, tables: Mapping[str, TableRuns]) -> Made | Missing:
    """Compare two methods, or say which run is missing."""
    table = tables.get(pair.table)
    if table is None:
        return Missing(pair, "the table is not in the study, or has no such runs")
    found = []
    for name in (pair.method, pair.than):
        keys = [(pair.dataset, backbone, name) for backbone in (pair.backbone, NO_BACKBONE)]
        if unmade := next((table.unmade[key] for key in keys if key in table.unmade), None):
            return Missing(pair, f"`{unmade}` is not made")
        runs = [table.methods[key] for key in keys if key in table.methods]
        if not runs:
            return Missing(pair, f"`{pair.table}` has no run of `{name}`")
        found.append(runs[0])
    method, other = found
    values, others = metric_of(method, metric), metric_of(other, metric)
    is_over_seeds = has_paired_seeds(method.seeds, other.seeds) and len(set(method.users)) > 1
    difference = (
        two_way_clustered_test(values - others, method.users)
        if is_over_seeds
        else user_clustered_test(values.mean(axis=0) - others.mean(axis=0), method.users)
    )
    return Made(pair, metric, (method, other), difference, is_over_seeds)


def metric_of(method: MethodRuns, metric: str) -> np.ndarray:
    """A metric of each run and row, (seeds, rows)."""
    return method.values[..., METRICS.index(metric)]


# ------------------------------------------------------------------------------------- Markdown


def markdown(entries: Sequence[Entry]) -> str:
    """The page: the rule, a table of claims, then the comparisons of each."""
    summary = tabulate(
        [summarise(entry) for entry in entries],
        ["Claim", "Verdict", "Won", "Lost", "Open", "Missing", "Smallest difference", "Tables"],
        "pipe",
        disable_numparse=True,
    )
    parts = ["# Claims", RULES, summary if entries else "The study has no claims."]
    scored = {run.folder: run for entry in entries for run in entry.runs}
    notes = note_unimproved(list(scored.values())).strip()
    return "\n\n".join([*parts, *map(section, entries), *filter(None, [notes])]) + "\n"


def summarise(entry: Entry) -> list[str]:
    """A row of the table of claims."""
    outcomes = [tested.outcome for _, tested in entry.made]
    counts = [str(outcomes.count(outcome)) for outcome in (WON, LOST, OPEN)]
    smallest = min(entry.made, key=lambda each: each[0].difference.mean, default=None)
    tables = dict.fromkeys(compared.table for compared in entry.claim.comparisons)
    return [
        escape(entry.sentence),
        f"**{entry.verdict}**",
        *counts,
        str(len(entry.missing)),
        "" if smallest is None else f"{effect(smallest[0])} to `{smallest[0].pair.than}`",
        ", ".join(f"`{name}`" for name in tables),
    ]


def section(entry: Entry) -> str:
    """The comparisons of a claim."""
    parts = [f"## {escape(entry.sentence)}", f"`{entry.name}`: **{entry.verdict}**"]
    if entry.made:
        parts.append(
            tabulate(
                [describe(made, tested) for made, tested in entry.made],
                [
                    *("Table", "Data set", "Backbone", "Method", "Other", entry.claim.metric),
                    *("Difference", "95 % interval", "p", "Seeds", "Outcome"),
                ],
                "pipe",
                disable_numparse=True,
            )
        )
    elif not entry.missing:
        parts.append("No table of the study speaks to it.")
    if entry.missing:
        lines = [
            f"* {where(each.pair)}, `{each.pair.method}` and `{each.pair.than}`: {each.reason}"
            for each in entry.missing
        ]
        parts.append("Missing:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def describe(made: Made, tested: AdjustedDifference) -> list[str]:
    """A comparison as a row."""
    pair, difference = made.pair, made.difference
    values = " and ".join(f"{value:.4f}".removeprefix("0") for value in made.means)
    interval = f"{points(difference.low)} to {points(difference.high)}"
    seeds = [str(len(each.runs)) for each in made.runs]
    outcome = tested.outcome if made.is_over_seeds else f"{tested.outcome}: users alone"
    return [
        *(f"`{name}`" for name in pair),
        values,
        effect(made),
        interval,
        show_p(tested.adjusted),
        seeds[0] if len(set(seeds)) == 1 else " and ".join(seeds),
        outcome,
    ]


def where(pair: Pair) -> str:
    """The table, data set and backbone of a pair, but for those that are not known."""
    return ", ".join(f"`{name}`" for name in pair[:3] if name != "?")


def effect(made: Made) -> str:
    """A difference in points, and in per cent of the other method's value."""
    _, other = made.means
    share = f" ({points(made.difference.mean / other, 1)} %)" if other else ""
    return f"{points(made.difference.mean)}{share}"


def points(value: float, digits: int = 2) -> str:
    """A value in hundredths, with its sign."""
    text = f"{100 * value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def show_p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def escape(text: str) -> str:
    return text.translate(MARKDOWN)
