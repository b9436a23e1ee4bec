"""The `rere` command: parse the options of a stage, run it, and print errors in one line."""

import argparse
import io
import itertools
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rere import config, signals
from rere.errors import InputError, LostProcess, hint, printable, remedy
from rere.files import DISK_FULL, is_disk_full
from rere.lease import join_lease
from rere.stages import STAGES

SECONDS_FOR_FIRST_RANK = 3


def main() -> None:
    """Run one stage. Bad input prints one line on standard error and exits with 1 (usage: 2)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # titles under PYTHONIOENCODING=ascii
    try:
        try:
            run()
        finally:
            flush_output()
    except BrokenPipeError:  # as in `rere --help | head`
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        fail("rere: interrupted", 128 + signal.SIGINT)
    except OSError as error:
        reason = DISK_FULL if is_disk_full(error) else error.strerror or error
        fail(f"rere: {error.filename or 'standard output'}: {reason}", 1)


def flush_output() -> None:
    """Flush standard output; if that fails, discard it, since Python flushes again at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


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
    run_stage(stage, parse(stage, arguments))


def run_stage(stage: str, command: Any) -> None:
    """Run a stage; bad input, a file that cannot be read or written and a signal exit in one line.

    The status after a signal is 128 plus its number.
    """
    rank, processes = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE"))
    signals.handle(signals.stop)
    try:
        if processes > 1 and not command.many_processes:
            raise InputError("takes one process; start it without torchrun")
        join_lease()
        command.run()
    except InputError as error:
        if rank > 0:
            leave_to_first_rank(error)
        fail(f"rere {stage}: {error}", 1)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        fail(f"rere {stage}: interrupted", 128 + signal.SIGINT)
    except signals.Stopped as stopped:
        end(stage, stopped, is_quiet=rank > 0)
    except Exception as error:
        if signals.Stopped.raised is not None:  # within matplotlib's code in C
            end(stage, signals.Stopped.raised)
        if is_disk_full(error):
            output = " ".join(config.options.words(getattr(command, "output", "standard output")))
            fail(f"rere {stage}: {getattr(error, 'filename', None) or output}: {DISK_FULL}", 1)
        if not isinstance(error, OSError):
            raise
        parts = [f"rere {stage}", error.filename, error.strerror or error]
        fail(": ".join(str(part) for part in parts if part is not None), 1)


def end(stage: str, stopped: signals.Stopped, is_quiet: bool = False) -> NoReturn:
    """Exit with the signal's line and status."""
    signals.ignore()
    if is_quiet:
        raise SystemExit(128 + stopped.number)
    fail(f"rere {stage}: {stopped}", 128 + stopped.number)


def leave_to_first_rank(error: InputError) -> None:
    """Give the first rank time to say the same; `torchrun` then ends this process."""
    if not isinstance(error, LostProcess):
        with suppress(signals.Stopped):
            time.sleep(SECONDS_FOR_FIRST_RANK)
            return
        raise SystemExit(1)


def other_forms(stage: str) -> list[str]:
    """The other stages with the same name that a flag selects, as in `recommend --history`."""
    name = stage.partition(" --")[0]
    return [form for form in STAGES if form.partition(" --")[0] == name and form != stage]


def parse(stage: str, arguments: list[str]) -> Any:
    """The stage's command with the options in `arguments`; the text `None` means None.

    What follows `--` is the option `command` of a stage that has one.
    """
    command = STAGES[stage]
    following: list[str] = []
    if "--" in arguments and "command" in command.model_fields:
        end = arguments.index("--")
        arguments, following = arguments[:end], arguments[end + 1 :]
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
    } | ({"command": following} if following else {})
    missing = [name for name, field in fields.items() if field.is_required() and name not in values]
    if missing:
        forms = " and ".join(f"rere {form}" for form in other_forms(stage))
        others = f"; there is also {forms}" if forms else ""
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
    others = [f"rere {form} --help" for form in other_forms(stage)]
    made = Parser(
        prog=f"rere {stage}",
        usage="%(prog)s [OPTIONS]",
        description=summary,
        epilog=f"See also: {', '.join(others)}" if others else None,
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
            const="True" if nargs(field) == "?" else None,
            default=argparse.SUPPRESS,
            help=f"{field.description}{default}",
        )
    optional.add_argument("-h", "--help", action="help", help="show this message")
    return made


def nargs(field: FieldInfo) -> str | None:
    """How many words argparse reads for an option; a bare `--flag` is True."""
    if field.annotation is bool:
        return "?"
    annotations = (field.annotation, *get_args(field.annotation))
    if not any(get_origin(each) in (list, dict) for each in annotations):
        return None
    return "*" if field.default in ([], {}) else "+"


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
    """Print a message in one line, whatever characters it has, and exit."""
    with suppress(OSError):  # a full disk, or a terminal that was closed
        print(printable(message), file=sys.stderr)
    with suppress(OSError):
        flush_output()
    raise SystemExit(status)
