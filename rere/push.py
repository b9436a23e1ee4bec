"""Upload the folder of a trained model to the Hugging Face hub.

One commit has the files that training wrote and nothing else. The token is the one that
huggingface_hub finds: HF_TOKEN, or that of `hf auth login`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from rere.adapters import BASE, CONFIG, is_adapters, read_adapter_base
from rere.config.run import CARD, stored_files
from rere.errors import InputError, first_line
from rere.evaluation.metrics import METRICS
from rere.files import read_json
from rere.model_card import complete_card
from rere.reporting.runs import MEASURE, MEASURE_AGAIN, is_number, read_identity

LOG_IN = "set HF_TOKEN, or run `hf auth login`"
REASONS = {
    401: f"the hub does not accept the token; {LOG_IN}",
    403: "the token has no permission to write there; take one that has",
}
"""Why the hub refuses, by HTTP status."""


def push(model: Path, repo: str, private: bool = False, revision: str | None = None) -> str:
    """Upload a trained model as the repository `repo`, owner/name; return the commit's address.

    Repository and branch are made if they are missing. The card gets the test metrics of the run,
    if it has any. Raises InputError for another folder than a trained model's, for files that
    training does not write, and if the hub cannot be reached or refuses.
    """
    changed = published_adapters(model) if is_adapters(model) else {}
    operations = [
        CommitOperationAdd(path.name, changed.get(path.name, str(path)))
        for path in files_of_model(model)
    ]
    if (model / CARD).is_file():
        card = complete_card(read_card(model / CARD), repo, read_metrics(model))
        operations.append(CommitOperationAdd(CARD, card.encode()))
    with explaining(repo):
        if repo.count("/") != 1:
            raise InputError(f"{repo}: not the name of a repository; write owner/name")
        if get_token() is None:
            raise InputError(f"{repo}: there is no token of the Hugging Face hub; {LOG_IN}")
        api = HfApi()
        # None leaves the choice to the owner's settings.
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise InputError(f"{repo}: exists and is public; leave out --private or take another")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo, operations, commit_message="Upload a model of rere", revision=revision
        )
    return str(commit.commit_url)


def files_of_model(folder: Path) -> list[Path]:
    """The files of a trained model but for its card; raises InputError for other ones.

    Hidden files, such as Snakemake's, are left out.
    """
    names = stored_files(is_adapters(folder))
    for name in names:
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: has no {name}; name the folder model/ of a run of `rere sft`, "
                "`rere preference` or `rere rl`"
            )
    for path in sorted(folder.iterdir()):
        if path.name not in (*names, CARD) and not path.name.startswith("."):
            raise InputError(f"{path}: is no file of a model; move it, as it is not uploaded")
    return [folder / name for name in names]


def published_adapters(folder: Path) -> dict[str, bytes]:
    """The contents of files of adapters in which the base is its published model, not a folder.

    Raises InputError if the base is not published.
    """
    base, config = read_adapter_base(folder), read_json(folder / CONFIG, "training")
    if base.hub is None:
        raise InputError(
            f"{folder}: has adapters of {base.model}, which is not on the hub; train it with "
            "`save: merged`"
        )
    config["base_model_name_or_path"] = base.hub
    published = base.model_copy(update={"model": base.hub, "relative": None})
    return {
        CONFIG: f"{json.dumps(config, indent=2)}\n".encode(),
        BASE: f"{published.model_dump_json(indent=2)}\n".encode(),
    }


def read_card(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text in UTF-8 ({error}); correct it") from None


def read_metrics(model: Path) -> dict[str, Any] | None:
    """The metrics of the run that the folder `model` is of; None if there are none yet.

    Those beside the folder, else those of its only evaluation. Raises InputError if there are
    several, and for metrics of another run or version.
    """
    folder = model.resolve().parent
    found = [folder / "metrics.json"]
    if not found[0].is_file():
        found = sorted(folder.glob("*=*/metrics.json"))
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found)
        raise InputError(f"{folder}: has metrics of {names}; copy those to show beside the model")
    path = found[0]
    metrics = read_json(path, MEASURE)
    read_identity(path, metrics)
    for name in ("rows", *(f"{m}{suffix}" for m in METRICS for suffix in ("", "_low", "_high"))):
        if not is_number(metrics.get(name)):
            raise InputError(f"{path}: has no number {name}; {MEASURE_AGAIN}")
    return metrics


@contextmanager
def explaining(repo: str) -> Iterator[None]:
    """Raise InputError with the reason if the hub refuses or cannot be reached."""
    try:
        yield
    except InputError:
        raise
    except HfHubHTTPError as error:
        reason = error.server_message or first_line(error)
        reason = REASONS.get(error.response.status_code, reason)
        raise InputError(f"{repo}: {' '.join(reason.split())}") from error
    except (HTTPError, ConnectionError) as error:
        raise InputError(f"{repo}: cannot reach the hub ({first_line(error)})") from error
    except (ValueError, RuntimeError) as error:  # of the name or the card; of an upload
        raise InputError(f"{repo}: {first_line(error)}") from error
