"""Check a config file for what YAML's loader takes in silence or dies of."""

from pathlib import Path

import yaml

from rere.errors import InputError, printable

MAX_DIGITS = 1000
MAPPING_KEYS = ("merge", "value")
"""Kinds of scalars that mean something in a mapping only: `<<` and `=`."""

ADVICE = "correct it, or put it in quotes if it is text"


def check_yaml(path: str | Path) -> None:
    """Raise InputError with the line of a key that comes twice, as the loader keeps the last.

    Also for text that is no YAML, a value that contains itself or is not what its tag says, lists
    that are nested thousands deep, and a number with thousands of digits.
    """
    try:
        # Nodes keep all keys, and an alias is the node itself: a bomb stays small.
        with Path(path).open(encoding="utf-8") as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)
        if root is not None:
            check_node(root, path, [], set())
            yaml.SafeLoader("").construct_document(root)  # finds wrong tags of lists and mappings
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply; write fewer brackets") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(printable(f"{path} line {line}: {error.problem}; correct it")) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            printable(f"{path}: cannot be read as YAML in UTF-8 ({error}); correct it")
        ) from None


def check_node(
    node: yaml.Node, path: str | Path, parents: list[yaml.Node], checked: set[yaml.Node]
) -> None:
    """Check a node and those in it, but for those in `checked`."""
    where = f"{path} line {node.start_mark.line + 1}"
    if node in parents:
        raise InputError(f"{where}: contains itself; write it out")
    if node in checked:
        return
    checked.add(node)
    if isinstance(node, yaml.ScalarNode):
        if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
            raise InputError(f"{where}: has a number of {len(node.value)} digits; shorten it")
        kind = node.tag.rpartition(":")[2]
        try:
            if kind not in MAPPING_KEYS:
                yaml.SafeLoader("").construct_object(node)
        except yaml.YAMLError:
            raise
        except Exception as error:  # of any type, as for a date without such a day
            text = printable(f"{where}: {node.value!r} is no {kind}; {ADVICE}")
            raise InputError(text) from error
        return
    inner = node.value
    if isinstance(node, yaml.MappingNode):
        check_keys([key for key, _ in inner if isinstance(key, yaml.ScalarNode)], path)
        inner = [each for pair in inner for each in pair]
    parents.append(node)
    for each in inner:
        check_node(each, path, parents, checked)
    parents.pop()


def check_keys(keys: list[yaml.ScalarNode], path: str | Path) -> None:
    """Raise InputError if two keys of a mapping are the same."""
    lines: dict[tuple[str, str], int] = {}
    for key in keys:
        name, line = (key.tag, key.value), key.start_mark.line + 1
        if name in lines:
            raise InputError(
                printable(
                    f"{path} line {line}: {key.value} comes twice, first in line {lines[name]}; "
                    "keep one"
                )
            )
        lines[name] = line
