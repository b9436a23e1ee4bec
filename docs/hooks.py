"""MkDocs hooks that fill pages from the code, so that no option is described twice.

A page's line

    <!-- options: rl.RlOptions - training.Training -->

becomes a table of the options of `rere.config.rl.RlOptions`, without those that `Training`
has with the same default and description. `<!-- commands -->` becomes the help of every stage,
`<!-- renamed -->` the old names of options with their new ones, `<!-- columns -->` the columns of a
table's .csv, and `<!-- log keys -->` the keys of log.jsonl. `<!-- verdicts -->` becomes the rule by
which claims are decided, `<!-- claims -->` what it says of the quick study, from tests/records/.
"""

import argparse
import importlib
import itertools
import re
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rere import cli
from rere.config.options import RENAMED
from rere.reporting.claims import RULES
from rere.reporting.tables import COLUMNS
from rere.stages import STAGES
from rere.training.log_keys import LOG_KEYS

OPTIONS = re.compile(r"^<!-- options: ([\w.]+)(?: - ([\w.]+))? -->$", re.MULTILINE)
COMMANDS, RENAMED_NAMES = "<!-- commands -->", "<!-- renamed -->"
COLUMN_NAMES, KEYS = "<!-- columns -->", "<!-- log keys -->"
VERDICTS, CLAIMS = "<!-- verdicts -->", "<!-- claims -->"
RECORD = Path(__file__).parents[1] / "tests/records/claims.md"
"""results/claims.md of the quick study."""
TYPES = {int: "integer", float: "number", str: "text", bool: "`true` or `false`"}
BOUNDS = {Ge: ("from", "ge"), Gt: ("above", "gt"), Le: ("to", "le"), Lt: ("below", "lt")}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the comments above by what they name."""
    markdown = OPTIONS.sub(lambda found: options_table(*map(load_model, found.groups())), markdown)
    markdown = markdown.replace(RENAMED_NAMES, renamed_table())
    markdown = markdown.replace(COLUMN_NAMES, two_columns("column", COLUMNS))
    markdown = markdown.replace(KEYS, log_tables()).replace(VERDICTS, RULES)
    markdown = markdown.replace(CLAIMS, quoted_claims())
    return markdown.replace(COMMANDS, commands()) if COMMANDS in markdown else markdown


def load_model(name: str | None) -> type[BaseModel] | None:
    """The option model of that name below `rere.config`."""
    if name is None:
        return None
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(f"rere.config.{module}"), attribute)


def options_table(options: type[BaseModel], shared: type[BaseModel] | None = None) -> str:
    """A Markdown table of the options that are not `shared`: key, value, default, meaning."""
    known = {} if shared is None else shared.model_fields
    rows = [
        f"| `{name}` | {value(field)} | {default(field)} | {meaning(field)} |"
        for name, field in options.model_fields.items()
        if not cli.is_fixed(field) and not (name in known and is_same(field, known[name]))
    ]
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])


def is_same(one: FieldInfo, other: FieldInfo) -> bool:
    return (one.default, one.description) == (other.default, other.description)


def value(field: FieldInfo) -> str:
    """What an option takes, in words."""
    return kind(field.annotation, field.metadata)


def kind(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type in words, with its bounds."""
    arguments = get_args(annotation)
    if annotation in TYPES:
        found = {type(each): each for each in metadata}
        limits = [
            f"{word} {getattr(found[bound], name):.12g}"
            for bound, (word, name) in BOUNDS.items()
            if bound in found
        ]
        return " ".join([TYPES[annotation], *limits])
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if get_origin(annotation) is Annotated:
        inner = [each for part in arguments[1:] for each in getattr(part, "metadata", [part])]
        return kind(arguments[0], inner)
    if get_origin(annotation) is list:
        return f"list: {kind(arguments[0])}"
    if NoneType in arguments:
        return f"{kind(arguments[0], metadata)}, or `null`"
    return "date" if getattr(annotation, "__name__", "") == "date" else "mapping"


def default(field: FieldInfo) -> str:
    """An option's default as YAML."""
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "the defaults below"
    text = yaml.safe_dump(field.default, default_flow_style=True).removesuffix("...\n")
    return f"`{text.strip()}`"


def meaning(field: FieldInfo) -> str:
    """An option's description; the command line's None is YAML's null."""
    return re.sub(r"\bNone\b", "`null`", field.description or "").replace("|", r"\|")


def renamed_table() -> str:
    """A Markdown table of old names, or of a key with its old value, and new ones."""
    rows = [f"| `{old}` | `{new}` |" for old, new in RENAMED.items()]
    return "\n".join(["| old | new |", "|---|---|", *rows])


def two_columns(what: str, meanings: dict[str, str]) -> str:
    """A Markdown table of names, several separated by commas, and their meaning."""
    rows = [f"| `{names.replace(', ', '`, `')}` | {text} |" for names, text in meanings.items()]
    return "\n".join([f"| {what} | meaning |", "|---|---|", *rows])


def log_tables() -> str:
    """A Markdown table of keys for each stage, or stages with keys in common."""
    tables = [f"{stages}:\n\n{two_columns('key', keys)}" for stages, keys in LOG_KEYS.items()]
    return "\n\n".join(tables)


def quoted_claims() -> str:
    """The recorded claims without title and rule, their headings one level lower."""
    claims = RECORD.read_text(encoding="utf-8").partition(RULES)[2]
    return re.sub("^##", "###", claims.strip(), flags=re.MULTILINE)


def commands() -> str:
    """The help of `rere`, and of each stage; stages with the same options share one."""
    sections = [block(cli.overview(STAGES))]
    for text, stages in itertools.groupby(STAGES, key=help_text):
        title = ", ".join(f"rere {stage}" for stage in stages)
        sections.append(f"## {title}\n\n{block(text)}")
    return "\n\n".join(sections)


def help_text(stage: str) -> str:
    """What `rere STAGE --help` prints, without the line of usage."""
    options = STAGES[stage]
    fields = {
        name: field for name, field in options.model_fields.items() if not cli.is_fixed(field)
    }
    parser = cli.parser(stage, options.__doc__, fields)
    parser.formatter_class = partial(argparse.HelpFormatter, width=96, max_help_position=30)
    return parser.format_help().partition("\n\n")[2]


def block(text: str) -> str:
    return f"```text\n{text.strip()}\n```"
