"""Turn a config mapping into a study: extend methods, expand grids, check every key and name.

Errors are one line each and name the keys as the user wrote them.
"""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from rere.config.backbones import TinyBackbone
from rere.config.baselines import Sequential
from rere.config.benchmarks import BenchmarkedModel, SpeedBenchmark
from rere.config.options import Options
from rere.config.run import NO_BACKBONE
from rere.config.study import METHOD_STAGES, FigureKind, Study
from rere.errors import InputError, printable, remedy, shown, unknown

MAX_MEMBERS = 10_000
"""Methods of one grid."""

FOLDERS = (
    {"datasets": ("", ".sha256", ".part")},
    {"backbones": ("",)},
    {"methods": ("",)},
    {
        "benchmarks": ("", ".curves"),
        "tables": ("", ".runs", *(f".{kind}" for kind in get_args(FigureKind)[1:])),
    },
)
"""Sections that share an output folder, with the endings of their files."""
REMOVABLE = (*(section for folder in FOLDERS for section in folder), "claims")
"""Sections of which an overlay may remove entries."""


def load_study(config: dict[str, Any]) -> Study:
    """The study that a config mapping, as read from YAML, describes, without its removed entries.

    Raises InputError with one line for each wrong key or name.
    """
    removed = removed_names(config)
    config = without_removed(config)
    expanded, grid_of = expand_grids(extend_methods(config))
    study = parse(Study, expanded, config, grid_of)
    checks = find_unusable_names, find_unusable_paths, find_wrong_names
    lines = [line for check in checks for line in check(study, grid_of)]
    if lines := [*lines, *find_wrong_claims(study, removed)]:
        raise InputError(one_line_each(lines))
    stop_at_wrong_training(study)
    return study


def without_removed(config: Any) -> Any:
    """A config without the entries that are null, as an overlay writes to remove them."""
    if not isinstance(config, dict):
        return config
    return config | {
        section: {name: entry for name, entry in config[section].items() if entry is not None}
        for section in REMOVABLE
        if isinstance(config.get(section), dict)
    }


def removed_names(config: Any) -> set[tuple[str, str]]:
    """The section and name of each entry of a config that is null."""
    sections = config if isinstance(config, dict) else {}
    return {
        (section, name)
        for section in REMOVABLE
        if isinstance(sections.get(section), dict)
        for name, entry in sections[section].items()
        if entry is None
    }


def parse(
    model: Any, values: Any, written: Any = None, grid_of: dict[str, str] | None = None
) -> Any:
    """`values` as an instance of `model`; raises InputError with one line for each wrong key.

    If `values` are a config with extended methods and expanded grids, `written` is the config
    before, whose keys the lines name.
    """
    try:
        return TypeAdapter(model).validate_python(values)
    except ValidationError as error:
        source = values if written is None else written
        lines = [describe_error(problem, source, grid_of or {}) for problem in error.errors()]
        raise InputError(one_line_each(lines)) from None


def one_line_each(lines: list[str]) -> str:
    """The different lines, without control characters, which text of a config may hold."""
    return "\n".join(dict.fromkeys(map(printable, lines)))


def find_unusable_names(study: Study, grid_of: dict[str, str]) -> Iterator[str]:
    """Yield a line for each name that Snakemake refuses or whose files another's would replace.

    Upper and lower case count as the same, since they are on some disks.
    """
    for folder in FOLDERS:
        owners: dict[str, str] = {}
        for section, endings in folder.items():
            for name in getattr(study, section):
                own = f"{section}.{name}"
                where = own if section != "methods" else f"methods.{grid_of.get(name, name)}"
                if re.search(r"(.{1,5})\1{19}$", name):
                    yield (
                        f"{where}: {name} repeats the same letters 20 times, which Snakemake "
                        "refuses; choose another name"
                    )
                for file in {f"{name}{ending}".casefold() for ending in endings}:
                    if (owner := owners.setdefault(file, own)) != own:
                        yield f"{where}: its files would be those of {owner}; choose another name"


def find_unusable_paths(study: Study, grid_of: dict[str, str]) -> Iterator[str]:
    """Yield a line for each path that Snakemake would take for another."""
    options: list[tuple[str, Options]] = [
        *((f"datasets.{name}", dataset) for name, dataset in study.datasets.items()),
        *((f"backbones.{name}", backbone) for name, backbone in study.backbones.items()),
        *(
            (f"methods.{grid_of.get(name, name)}.{method.stage}", method.options)
            for name, method in study.methods.items()
        ),
    ]
    for where, each in options:
        for key in ("folder", "events", "items", "model", "embeddings"):
            if re.search(r"[{}\x00-\x1f\x7f]", str(getattr(each, key, None))):
                yield f"{where}.{key}: holds braces or control characters; rename it"


def find_wrong_names(study: Study, grid_of: dict[str, str]) -> Iterator[str]:
    """Yield a line for each name that a study uses and does not define or cannot use."""
    for name, backbone in study.backbones.items():
        if name == NO_BACKBONE:
            yield f"backbones.{name}: stands for methods without one; choose another name"
        if isinstance(backbone, TinyBackbone) and backbone.corpus not in study.datasets:
            yield f"backbones.{name}.corpus: {unknown(backbone.corpus, study.datasets)}"
    for name, method in study.methods.items():
        yield from find_wrong_baseline(study, name, grid_of)
        where = f"methods.{grid_of.get(name, name)}.init"
        if method.init is None:
            continue
        if method.init not in study.methods:
            yield f"{where}: {unknown(method.init, study.methods)}"
        elif not study.methods[method.init].trains_model:
            stage = study.methods[method.init].stage
            yield f"{where}: {method.init} is a {stage}, which trains no model to start from"
        ancestors, init = [name], method.init
        while init in study.methods and init not in ancestors:
            ancestors.append(init)
            init = study.methods[init].init
        if init == name:
            yield f"{where}: {' starts from '.join([*ancestors, name])}"
    for name, table in study.tables.items():
        for axis in ("datasets", "backbones", "methods"):
            for value in getattr(table, axis):
                if value not in getattr(study, axis):
                    yield f"tables.{name}.{axis}: {unknown(value, getattr(study, axis))}"
        for key in ("reference", "highlight"):
            value = getattr(table, key)
            if value is not None and value not in table.methods:
                yield f"tables.{name}.{key}: {unknown(value, table.methods)}"
        yield from find_wrong_figures(study, name)
        names = [*table.methods, *table.datasets, *table.backbones]
        for value in table.labels:
            if value not in names:
                yield f"tables.{name}.labels: {unknown(value, names)}"
    for name, benchmark in study.benchmarks.items():
        where = f"benchmarks.{name}"
        if benchmark.dataset not in study.datasets:
            yield f"{where}.dataset: {unknown(benchmark.dataset, study.datasets)}"
        if isinstance(benchmark, SpeedBenchmark):
            for model in benchmark.models:
                yield from find_wrong_model(study, model, f"{where}.models")
        else:
            yield from find_wrong_model(study, benchmark, where)


def find_wrong_figures(study: Study, name: str) -> Iterator[str]:
    """Yield a line for each figure of a table that lacks what it shows."""
    table, where = study.tables[name], f"tables.{name}"
    methods = [method for method in table.methods if method in study.methods]
    for value in itertools.chain(*table.axes.values()):
        if value not in table.methods:
            yield f"{where}.axes: {unknown(value, table.methods)}"
    if "axes" in table.figures and not table.axes:
        yield f"{where}.figures: axes needs the axes of the table; name them under `axes`"
    if "backbones" in table.figures and all(study.methods[m].baseline for m in methods):
        yield f"{where}.figures: backbones needs a method with a language model; leave it out"
    gaining = [method for method in methods if study.starts_rl(method)]
    if "hits" in table.figures and not gaining:
        yield f"{where}.figures: hits needs an RL method with `init`; leave it out"
    needs = {
        "hits": [(method, study.methods[method].init) for method in gaining],
        "cost": [(method, start) for method in methods for start in study.starts(method)],
    }
    for kind, pairs in needs.items():
        for method, start in pairs if kind in table.figures else ():
            if start not in table.methods:
                yield (
                    f"{where}.figures: {kind} needs {start}, which {method} starts from; add it to "
                    "`methods`"
                )


def find_wrong_claims(study: Study, removed: set[tuple[str, str]]) -> Iterator[str]:
    """Yield a line for each name in a claim that the study does not define.

    A name that it defines or removes is right, even if the claim's table has no such run: then the
    claim is not run.
    """
    for name, claim in study.claims.items():
        for compared in claim.comparisons:
            used = {
                ("table", "tables"): [compared.table],
                ("method", "methods"): [compared.method],
                ("than", "methods"): compared.than,
                ("datasets", "datasets"): compared.datasets or [],
                ("backbones", "backbones"): compared.backbones or [],
            }
            where = f"claims.{name}.comparisons"
            for (key, section), values in used.items():
                names = getattr(study, section)
                for value in values:
                    if value not in names and (section, value) not in removed:
                        yield f"{where}.{key}: {unknown(value, names)}"
            if compared.method in compared.than:
                yield f"{where}.than: {compared.method} would be compared with itself; leave it out"


def stop_at_wrong_training(study: Study) -> None:
    """Raise InputError for options of a backbone that a method of its runs cannot have."""
    trained: dict[tuple[str, str], None] = {}
    for run in itertools.chain.from_iterable(map(study.runs, study.tables)):
        name: str | None = run.method
        while name is not None and (name, run.backbone) not in trained:
            trained[name, run.backbone] = None
            name = study.methods[name].init
    lines = []
    for method, backbone in trained:
        try:
            study.options_of(method, backbone)
        except ValidationError as error:
            where = f"backbones.{backbone}.training: with methods.{method}"
            lines += [f"{where}: {remedy(problem)}" for problem in error.errors()]
    if lines:
        raise InputError(one_line_each(lines))


def find_wrong_baseline(study: Study, name: str, grid_of: dict[str, str]) -> Iterator[str]:
    """Yield a line if a method needs a sequential baseline and names none, or the reverse."""
    method = study.methods[name]
    where, given = f"methods.{grid_of.get(name, name)}.collaborative", method.collaborative
    if given is None and method.needs_baseline:
        user = "d3" if method.stage == "decode" else "the reward"
        yield f"{where}: missing; name the sequential baseline that {user} needs"
    if given is None:
        return
    if given not in study.methods:
        yield f"{where}: {unknown(given, study.methods)}"
    elif not isinstance(study.methods[given].baseline, Sequential):
        yield f"{where}: {given} is not a sequential baseline; name one of gru4rec, caser or sasrec"
    elif not method.needs_baseline and name not in grid_of:  # other members of the grid may need it
        yield f"{where}: {name} has no reward or alpha that needs it; leave it out"


def find_wrong_model(study: Study, model: BenchmarkedModel, where: str) -> Iterator[str]:
    """Yield a line for each name of a benchmarked model that is not defined or has no model."""
    for axis in ("backbone", "method"):
        value, names = getattr(model, axis), getattr(study, f"{axis}s")
        if value is None:
            continue
        if value not in names:
            yield f"{where}.{axis}: {unknown(value, names)}"
        elif axis == "method" and not names[value].trains_model:
            stage = names[value].stage
            yield f"{where}.{axis}: {value} is a {stage}, which trains no model to benchmark"


def describe_error(problem: Any, written: Any, grid_of: dict[str, str]) -> str:
    """One line for an error of pydantic: the key as the user wrote it, and the remedy."""
    context = problem.get("ctx", {})
    inner = [context["key"]] if "key" in context else []
    inner += [context["discriminator"].strip("'")] if "discriminator" in context else []
    loc = [*problem["loc"], *inner]
    if loc[0:1] == ["methods"] and len(loc) > 1 and loc[1] in grid_of:
        grid = grid_of[loc[1]]
        swept = [key for key in loc[2:] if key in written["methods"][grid]["grid"]]
        loc = ["methods", grid, "grid", *swept] if swept else ["methods", grid, *loc[2:]]
    # A name that is no text comes as one, and is no key.
    if loc[0:1] == ["methods"] and len(loc) > 2 and loc[1] in written["methods"]:
        loc[1] = method_with(loc[2:], loc[1], written["methods"])
    # Leave out members of unions and indices of lists, which are not keys that the user wrote.
    keys, node = [], written
    for key in loc:
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, list) and isinstance(key, int) and key < len(node):
            node = node[key]
            continue
        elif key is not loc[-1] or not (inner or problem["type"] == "missing"):
            continue
        keys.append(str(key) or "''")
    return ": ".join(filter(None, [".".join(keys), remedy(problem)]))


def method_with(keys: list[Any], name: str, methods: dict[str, Any]) -> str:
    """The method that has a key below itself as written: `name`, or one that it extends."""
    node = methods[name]
    for key in keys:
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif key is keys[-1] and (extended := extends(methods[name])):
            return method_with(keys, extended, methods)
    return name


def extend_methods(config: Any) -> Any:
    """A config in which a method that extends another has its keys, where it has none itself.

    Raises InputError with one line for each method that extends what it cannot.
    """
    if not (isinstance(config, dict) and isinstance(config.get("methods"), dict)):
        return config
    methods = config["methods"]
    if lines := list(find_wrong_extends(methods)):
        raise InputError(one_line_each(lines))

    def extended(name: str) -> Any:
        method, base = methods[name], extends(methods[name])
        if base is None:
            return method
        return merge(extended(base), {key: method[key] for key in method if key != "extends"})

    return config | {"methods": {name: extended(name) for name in methods}}


def find_wrong_extends(methods: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each method that extends no method, a grid or itself."""
    for name, method in methods.items():
        where, base = f"methods.{name}.extends", extends(method)
        if base is None:
            continue
        if base not in methods:
            yield f"{where}: {unknown(base, methods)}"
            continue
        if isinstance(methods[base], dict) and methods[base].get("grid") is not None:
            yield f"{where}: {base} is a grid; extend a method without `grid`"
        chain = [name]
        while base in methods and base not in chain:
            chain.append(base)
            base = extends(methods[base])
        if base == name:
            yield f"{where}: {' extends '.join([*chain, name])}"


def extends(method: Any) -> str | None:
    """The name of the method that one extends; `parse` reports one that is no text."""
    base = method.get("extends") if isinstance(method, dict) else None
    return base if isinstance(base, str) else None


def merge(base: Any, changes: Any) -> Any:
    """Mappings laid over one another; of other values, `changes`."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    return base | {key: merge(base.get(key), value) for key, value in changes.items()}


def expand_grids(config: Any) -> tuple[Any, dict[str, str]]:
    """A config with each grid replaced by its members, and the name of each member's grid.

    A grid maps options of the method's stage to lists of values. A member's name is that of the
    grid and its options, in the grid's order: `kl` with `beta: [0.0, 0.1]` gives `kl-beta=0.0`
    and `kl-beta=0.1`. A table that lists the grid gets all members.
    """
    if not (isinstance(config, dict) and isinstance(config.get("methods"), dict)):
        return config, {}
    methods, grid_of = {}, {}
    for name, method in config["methods"].items():
        if not has_grid(method):
            methods[name] = method
            continue
        stage = next(stage for stage in METHOD_STAGES if stage in method)
        check_grid(f"methods.{name}.grid", method["grid"])
        for values in itertools.product(*method["grid"].values()):
            named = zip(method["grid"], map(name_value, values), strict=True)
            member = "-".join([str(name), *(f"{key}={value}" for key, value in named)])
            if member in methods or member in config["methods"]:
                raise InputError(f"methods.{name}.grid: {member} comes twice")
            options = method[stage] | dict(zip(method["grid"], values, strict=True))
            methods[member] = method | {stage: options, "grid": None}
            grid_of[member] = name
    expanded = config | {"methods": methods}
    if isinstance(config.get("tables"), dict):
        expanded["tables"] = {
            name: replace_axes(replace_grids(table, "methods", grid_of), grid_of)
            for name, table in config["tables"].items()
        }
    if isinstance(config.get("claims"), dict):
        expanded["claims"] = {
            name: replace_compared(claim, grid_of) for name, claim in config["claims"].items()
        }
    return expanded, grid_of


def check_grid(where: str, grid: dict[Any, list[Any]]) -> None:
    """Raise InputError for a grid of too many members, or of values that cannot be in a name."""
    if (members := math.prod(map(len, grid.values()))) > MAX_MEMBERS:
        raise InputError(f"{where}: has {members} members; give at most {MAX_MEMBERS}")
    for key, values in grid.items():
        for value in itertools.chain(
            *(each if isinstance(each, list) else [each] for each in values)
        ):
            is_huge = isinstance(value, int) and value.bit_length() > 64
            if is_huge or isinstance(value, dict | list | tuple | set):
                raise InputError(
                    printable(f"{where}.{key}: takes single values and lists, not {shown(value)}")
                )


def has_grid(method: Any) -> bool:
    """Whether a method has a well-formed grid; `parse` reports what is wrong with others."""
    if not (isinstance(method, dict) and isinstance(method.get("grid"), dict)):
        return False
    lists, stages = method["grid"].values(), [stage for stage in METHOD_STAGES if stage in method]
    well_formed = len(lists) > 0 and all(isinstance(values, list) and values for values in lists)
    return well_formed and len(stages) == 1 and isinstance(method[stages[0]], dict)


def replace_axes(table: Any, grid_of: dict[str, str]) -> Any:
    """A table with the grids in its axes replaced by their members."""
    if not (isinstance(table, dict) and isinstance(table.get("axes"), dict)):
        return table
    axes = table["axes"]
    for title in axes:
        axes = replace_grids(axes, title, grid_of)
    return table | {"axes": axes}


def replace_compared(claim: Any, grid_of: dict[str, str]) -> Any:
    """A claim with the grids that it compares with replaced by their members."""
    if not (isinstance(claim, dict) and isinstance(claim.get("comparisons"), list)):
        return claim
    return claim | {
        "comparisons": [replace_grids(each, "than", grid_of) for each in claim["comparisons"]]
    }


def replace_grids(entry: Any, key: str, grid_of: dict[str, str]) -> Any:
    """An entry of a config with the grids in its list `key` replaced by their members."""
    if not (isinstance(entry, dict) and isinstance(entry.get(key), list)):
        return entry
    methods = [
        [member for member, grid in grid_of.items() if grid == name] or [name]
        for name in entry[key]
    ]
    return entry | {key: list(itertools.chain.from_iterable(methods))}


def name_value(value: Any) -> str:
    """A value of a grid as part of a method's name; `+` joins those of a list."""
    if isinstance(value, list):
        return "+".join(map(name_value, value))
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", str(value))
