"""The documentation: links, commands, config snippets and rewards that it shows are right."""

import copy
import itertools
import re
import shlex
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from markdown.extensions.toc import slugify
from pydantic import BaseModel
from snakemake.utils import update_config

from rere.config.options import RENAMED, flag
from rere.config.study import Study
from rere.overlays import find_overwritten
from rere.reporting.claims import RULES
from rere.reporting.tables import COLUMNS
from rere.stages import STAGES
from rere.study import load_study
from rere.training.checkpoints import MEMORY_OPTIONS, RESULT_NEUTRAL
from rere.training.log_keys import LOG_KEYS
from rere.training.rewards import Groups, make_reward

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")])
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
WRITTEN = "config/backbones.lock.yaml"
"""A file that a study writes."""
LOADED = {"src", "href", "srcset", "data", "poster"}
"""Attributes by which a page loads something, or links to it."""


def blocks(*languages: str) -> list[Any]:
    """The code blocks of all pages in these languages, each with its page as the test's id."""
    return [
        pytest.param(block, id=f"{page}-{number}")
        for page, text in TEXTS.items()
        for number, (language, block) in enumerate(FENCE.findall(text))
        if language in languages
    ]


def commands(program: str) -> Iterator[list[str]]:
    """The words of each command of `program` in a code block or in inline code."""
    for text in TEXTS.values():
        code = [block for language, block in FENCE.findall(text) if language in ("bash", "console")]
        code += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
        for line in "\n".join(code).replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                found = re.match(
                    rf"(?:\$ )?(?:\.venv/bin/|python -m )?{program} (.+)", part.strip()
                )
                if found and "<" not in found[1]:
                    yield shlex.split(found[1], comments=True)


def study(*configs: dict[str, Any] | str) -> Study:
    """The quick study with configs laid over it, given as mappings or by their path.

    None of them may overwrite results of those before.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    for config in ("config/config.yaml", *configs):
        mapping = yaml.safe_load((ROOT / config).read_text()) if isinstance(config, str) else config
        layers.append((str(config), mapping))
    assert list(find_overwritten(layers, update_config)) == []
    merged: dict[str, Any] = {}
    for _, config in layers:
        update_config(merged, copy.deepcopy(config))
    return load_study(merged)


# ---------------------------------------------------------------------------------------- pages


def test_the_readme_is_a_front_door():
    assert len(TEXTS["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("page", TEXTS)
def test_relative_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", TEXTS[page])):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = ROOT / page if not path else (ROOT / page).parent / path
        assert target.exists(), link
        if anchor:
            slugs = [slugify(heading, "-") for heading in HEADING.findall(target.read_text())]
            assert anchor in slugs, link


@pytest.mark.parametrize("page", sorted(TEXTS.keys() - {"CHANGELOG.md", "docs/renamed.md"}))
def test_files_and_modules_exist(page):
    """But for pages that give old names."""
    for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", TEXTS[page])):
        if re.fullmatch(r"(rere|workflow|config|tests|profiles|envs)/[\w./-]*", code):
            assert (ROOT / code).exists() or code == WRITTEN, code
        if re.fullmatch(r"rere(\.[a-z_]\w*)+", code):
            path = ROOT / code.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists(), code


@pytest.mark.parametrize("snippet", blocks("yaml"))
def test_config_snippets_are_valid(snippet):
    study(yaml.safe_load(snippet))


@pytest.mark.parametrize("words", [pytest.param(c, id=" ".join(c)) for c in commands("rere")])
def test_commands_exist(words):
    if words[0] in ("STAGE", "--help"):
        return
    if any(stage.split()[: len(words)] == words for stage in STAGES):
        return  # a stage, or what several stages begin with
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), words[:2]))
    stage = next((s for s in (" ".join(names), names[0]) if s in STAGES), None)
    assert stage is not None
    if "--" in words:  # what follows is the option `command`
        words = [*words[: words.index("--")], "--command"]
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    forms = [form for form in STAGES if form.partition(" --")[0] == stage]
    assert any(given <= {"--help", *map(flag, STAGES[form].model_fields)} for form in forms)
    needed = [
        {flag(name) for name, field in STAGES[form].model_fields.items() if field.is_required()}
        for form in forms
    ]
    assert "--help" in given or any(flags <= given for flags in needed)


@pytest.mark.parametrize("words", [pytest.param(c, id=" ".join(c)) for c in commands("snakemake")])
def test_tables_that_are_asked_for_exist(words):
    configs = [word for word in words if word.endswith(".yaml")]
    if "my.yaml" in configs:
        return
    chosen = study(*configs)
    names = {*chosen.tables, *chosen.benchmarks}
    for word in words:
        if asked := re.fullmatch(r"results/(?:tables|figures)/([\w-]+)[\w.]*", word):
            assert asked[1] in names


def test_options_under_which_a_run_resumes_are_listed():
    paths = {"init", "data", "factors", "embeddings", "output"}
    for name in (RESULT_NEUTRAL | MEMORY_OPTIONS) - paths:
        assert f"`{name}`" in TEXTS["docs/reproducing.md"].partition("## What runs again")[0]


def test_the_quoted_claims_are_those_of_the_quick_study_by_the_rule_of_today():
    text = (ROOT / "tests/records/claims.md").read_text()
    assert text.startswith(f"# Claims\n\n{RULES}\n\n")
    declared = [f"{each.sentence}" for each in study().claims.values()]
    assert re.findall("^## (.*)$", text, re.M) == declared


RECOMMENDING = TEXTS["docs/recommending.md"]


@pytest.mark.parametrize(
    "snippet", [each for each in blocks("python") if each.values[0] not in RECOMMENDING]
)
def test_the_reward_snippets_are_rewards(snippet, tmp_path, monkeypatch):
    (tmp_path / "rewards_of_the_docs.py").write_text(snippet)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rewards_of_the_docs", raising=False)
    groups = Groups(
        row_id=torch.tensor([0, 1]),
        history=[[3, 5], [2]],
        target=torch.tensor([4, 0]),
        item=torch.tensor([[5, 4, 3], [0, -1, 2]]),
        hit=torch.zeros(2, 3, dtype=torch.bool),
        log_prob=torch.zeros(2, 3),
    )
    reward = make_reward("rewards_of_the_docs:is_new")(groups)
    assert reward.tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]


def test_the_snippets_of_recommending_run(model_with_catalogue, tmp_path, monkeypatch, capsys):
    (tmp_path / "products.csv").write_text("id,price\nraw3,5\nraw4,50\n")
    (tmp_path / "model").symlink_to(model_with_catalogue)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo: "model")
    names = {"history": ["Heat"], "ids_in_stock": ["raw3", "raw5"]}
    for snippet in re.findall(r"```python\n(.*?)```", RECOMMENDING, re.DOTALL):
        shortened = snippet.replace("results/runs/ml-100k/tiny/rere/seed0/model", "model")
        exec(shortened.replace("Heat (1995)", "Heat"), names)
    assert len(re.findall(r"^raw\d+ ", capsys.readouterr().out, re.MULTILINE)) == 10


# ------------------------------------------------------------------------------------- the site


class Loads(HTMLParser):
    """Collects what a page loads: everything but the targets of its links."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            self.found += [value for name, value in attrs if name in LOADED and value]


def test_the_site_loads_nothing_from_elsewhere(built_site):
    pages = list(built_site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        for address in Loads(page).found:
            assert "//" not in address, f"{page.name}: {address}"
            path = address.partition("?")[0].partition("#")[0]
            file = built_site / path[1:] if path.startswith("/") else page.parent / path
            assert file.exists(), f"{page.name}: {address}"
    for style in built_site.rglob("*.css"):
        assert not re.search(r"url\(\W*(https?:)?//|@import", style.read_text()), style.name


def test_the_site_has_what_it_would_load_from_elsewhere(built_site):
    """The theme fetches these from the network unless a page has loaded them."""
    page = (built_site / "architecture.html").read_text()
    assert 'src="javascripts/mermaid.tiny.js"' in page
    assert 'src="javascripts/iframe-worker.js"' in page
    assert '<pre class="mermaid">' in page


def option_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """All option models that a type consists of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from option_models(field.annotation)
    for inner in get_args(annotation):
        yield from option_models(inner)


def test_every_option_stage_column_and_log_key_is_on_its_page(built_site):
    configuration = (built_site / "configuration.html").read_text()
    for model in set(option_models(Study)):
        for key in model.model_fields:
            assert f"<code>{key}</code>" in configuration, f"{model.__name__}.{key}"
    headings = re.findall(r"<h2[^>]*>(.*?)<a", (built_site / "command-line.html").read_text())
    assert {name for heading in headings for name in heading.split(", ")} == {
        f"rere {stage}" for stage in STAGES
    }
    files = (built_site / "files.html").read_text()
    for names in (COLUMNS, *LOG_KEYS.values()):
        assert all(f"<code>{name}</code>" in files for each in names for name in each.split(", "))
    renamed = (built_site / "renamed.html").read_text()
    assert all(f"<code>{old}</code>" in renamed for old in RENAMED)
