"""The `rere` command: parse the options of a stage, run it, and print errors in one line."""

import argparse
import itertools
import os
import signal
import sys
from collections.abc import Collection
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rere import config
from rere.errors import InputError, hint, printable, remedy
from rere.stages import STAGES


def main() -> None:
    """Run one stage. Bad input prints one line on standard error and exits with 1 (usage: 2)."""
    try:
        try:
            run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader closed the pipe, as in `rere --help | head`. Python flushes again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def run() -> None:
    """Run the stage that the command line names."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:3]))
    stage = next((s for s in (" ".join(words), *words[:1]) if s in STAGES), None)
    if stage is None:
        matching = [name for name in STAGES if name.split()[: len(words)] == words]
        if matching and set(sys.argv[1 + len(words) :]) <= {"-h", "--help"}:
            print(overview(matching))
            return
        given = " ".join(words) or sys.argv[1]
        fail(f"rere: unknown stage {given}; {hint(given, STAGES, 'see rere --help')}", 2)
    arguments = sys.argv[1 + len(stage.split()) :]
    given = {word.partition("=")[0] for word in arguments}
    stage = next((s for s in other_forms(stage) if s.removeprefix(f"{stage} ") in given), stage)
    command = parse(stage, arguments)
    try:
        command.run()
    except InputError as error:
        fail(f"rere {stage}: {error}", 1)
    except BrokenPipeError:
        raise
    except OSError as error:
        parts = [f"rere {stage}", error.filename, error.strerror or error]
        fail(": ".join(str(part) for part in parts if part is not None), 1)
    except KeyboardInterrupt:
        fail(f"rere {stage}: interrupted", 130)


def other_forms(stage: str) -> list[str]:
    """The other stages with the same name that a flag selects, as in `recommend --history`."""
    name = stage.partition(" --")[0]
    return [form for form in STAGES if form.partition(" --")[0] == name and form != stage]


def parse(stage: str, arguments: list[str]) -> Any:
    """The stage's command with the options in `arguments`; the text `None` means None."""
    command = STAGES[stage]
    if {"-h", "--help"} & set(arguments):
        arguments = ["--help"]  # also where a value is missing: `recommend --history --help`
    fields = {name: field for name, field in command.model_fields.items() if not is_fixed(field)}
    given, unknown = parser(stage, command.__doc__, fields).parse_known_args(arguments)
    if unknown:
        for form in other_forms(stage):
            if unknown[0].partition("=")[0] in map(config.options.flag, STAGES[form].model_fields):
                fail(f"rere {stage}: {unknown[0]} is an option of rere {form}", 2)
        name = unknown[0].partition("=")[0].removeprefix("--").replace("-", "_")
        if new := config.options.new_name(name, fields):
            fail(f"rere {stage}: {unknown[0]}: renamed; write {config.options.flag(new)}", 2)
        advice = hint(unknown[0], map(config.options.flag, fields), f"see rere {stage} --help")
        fail(f"rere {stage}: unknown option {unknown[0]}; {advice}", 2)
    values = {
        name: None
        if value in ("None", ["None"]) and type(None) in get_args(fields[name].annotation)
        else value
        for name, value in vars(given).items()
    }
    missing = [name for name, field in fields.items() if field.is_required() and name not in values]
    if missing:
        others = "".join(f"; there is also rere {form}" for form in other_forms(stage))
        fail(f"rere {stage}: missing {', '.join(map(config.options.flag, missing))}{others}", 2)
    try:
        return command.model_validate(values, strict=False)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            keys = problem["loc"][:1] or filter(None, [problem.get("ctx", {}).get("key")])
            problems.append(": ".join([*map(config.options.flag, keys), remedy(problem)]))
        fail(f"rere {stage}: {'; '.join(problems)}", 2)


def is_fixed(field: FieldInfo) -> bool:
    """Whether the stage's name sets the option, as `backbone tiny` sets `source`."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return choices == (field.default,)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{self.prog}: {message.removeprefix('argument ')}", 2)


def parser(stage: str, summary: str | None, fields: dict[str, FieldInfo]) -> Parser:
    """A parser that reads every option as text; pydantic checks the values."""
    made = Parser(
        prog=f"rere {stage}",
        usage="%(prog)s [OPTIONS]",
        description=summary,
        epilog="".join(f"See also: rere {form} --help" for form in other_forms(stage)),
        allow_abbrev=False,
        add_help=False,
    )
    required, optional = map(made.add_argument_group, ("required", "options"))
    for name, field in fields.items():
        default = (
            "" if field.is_required() else f" [{' '.join(config.options.words(field.default))}]"
        )
        (required if field.is_required() else optional).add_argument(
            config.options.flag(name),
            dest=name,
            metavar=placeholder(field.annotation),
            nargs=nargs(field),
            default=argparse.SUPPRESS,
            help=f"{field.description}{default}",
        )
    optional.add_argument("-h", "--help", action="help", help="show this message")
    return made


def nargs(field: FieldInfo) -> str | None:
    """How many words argparse reads for an option."""
    if not any(
        get_origin(each) is list for each in (field.annotation, *get_args(field.annotation))
    ):
        return None
    return "*" if field.default == [] else "+"


def placeholder(annotation: Any) -> str:
    """The name of an option's value in the help: PATH, INT, {float32,bfloat16}."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return f"{{{','.join(inner)}}}"
    return placeholder(inner[0]) if inner else annotation.__name__.upper()


def overview(stages: Collection[str]) -> str:
    """The help of several stages: one line for each."""
    width = max(map(len, stages))
    lines = [f"  {stage:{width}}  {first_paragraph(STAGES[stage])}" for stage in stages]
    return "\n".join(
        ["usage: rere STAGE [OPTIONS]", "", *lines, "", "`rere STAGE --help` lists its options."]
    )


def first_paragraph(command: Any) -> str:
    """The first paragraph of a command's docstring, in one line."""
    return " ".join(command.__doc__.partition("\n\n")[0].split())


def fail(message: str, status: int) -> NoReturn:
    print(printable(message), file=sys.stderr)
    raise SystemExit(status)
