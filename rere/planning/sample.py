"""What a row of a data set takes of a backbone: counted, and timed here, on a sample of rows.

Candidates that a run would find are not known beforehand: random titles stand for them in updates,
and a model that has learnt a little searches.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from rere.backbones import count_parameters, random_model, shape_of
from rere.config.options import Scoring
from rere.config.rl import RlOptions, RolloutStrategy
from rere.data.dataset import read_split
from rere.devices import choose_dtype
from rere.engine.candidates.leaves import pack_leaves
from rere.engine.candidates.packing import PackedBatch
from rere.engine.candidates.scoring import token_log_probs, token_scores
from rere.engine.model.decoder import supports_shared_prompt
from rere.engine.model.precision import arithmetic
from rere.engine.search.batch_size import logits_per_position
from rere.engine.search.noise import row_seeds
from rere.engine.search.rollout import num_samples, roll_out
from rere.engine.search.unconstrained import generate_greedy
from rere.planning.memory import make_optimizer
from rere.planning.operations import Counts, Shape
from rere.planning.passes import TrainingOptions
from rere.planning.plan import Texts
from rere.planning.small_model import small_model
from rere.prefix_tree import PrefixTree
from rere.training.models import prepare
from rere.training.preference import random_leaves
from rere.training.setup import Row, read_rows, sort_by_length

SAMPLED_ROWS = 256
BATCHES = 3
"""Batches of the sample that are counted and timed: short, middling and long prompts."""
COUNTED_ROWS = 1
"""Rows of a batch of a search that is not timed."""

MOST_TIMED = 20e6
"""Weights of the largest model that is timed."""
REPEATS = 3

FIT_STEPS, FIT_ROWS, FIT_TOKENS, FIT_RATE = 60, 16, 16, 3e-3
"""How a model learns before it searches, from so many tokens of a prompt.

With random weights it prefers titles of few decisions, which take a search fewer passes: 3 instead
of a trained model's 5 on MovieLens-100K. After so little training it takes 5.
"""

Strategy: TypeAlias = RolloutStrategy | Literal["greedy"]
"""How a search finds titles, or writes them."""

CPU = torch.device("cpu")
SPEED_OPTIONS = ("rows_per_pass", "optimizer", "dtype", "lora_rank", "gradient_checkpointing")
"""Options that change the time of an update."""


class Unit(NamedTuple):
    """What a row takes; `passes` are those of its batch."""

    counts: Counts
    apart: Counts  # if each candidate had a prompt of its own
    seconds: float | None  # on this CPU; None: the model is too large to be timed


class Search(NamedTuple):
    """A search of rows of a split, in batches."""

    split: str
    batch_size: int
    strategy: Strategy
    num_candidates: int
    scoring: Scoring
    dtype: str


class Sample:
    """A data set in the tokens of a backbone, whose units are remembered."""

    def __init__(self, config: PreTrainedConfig, texts: Texts, data: Path, seed: int) -> None:
        self.config, self.texts, self.data, self.seed = config, texts, data, seed
        self.shape = Shape.of(config)
        self.is_timed = count_parameters(shape_of(config)) <= MOST_TIMED
        self.known: dict[Any, Any] = {}

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, once for each key."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    # ---------------------------------------------------------------------------------- rows

    def num_rows(self, split: str) -> int:
        return int(self.remember(split, lambda: read_split(self.data, split).height))

    def rows(self, split: str) -> list[Row]:
        """Some rows of a split, those with short prompts first."""

        def make() -> list[Row]:
            some = read_rows(self.data, split, min(SAMPLED_ROWS, self.num_rows(split)))
            return sort_by_length(some, self.texts.responses)

        rows: list[Row] = self.remember(("rows", split), make)
        return rows

    def batches(self, split: str, size: int) -> list[list[Row]]:
        """BATCHES of up to `size` rows, in the middle of the sample's thirds."""
        rows = self.rows(split)
        size = max(1, min(size, len(rows) // BATCHES))
        middles = [(2 * batch + 1) * len(rows) // (2 * BATCHES) for batch in range(BATCHES)]
        return [rows[middle - size // 2 :][:size] for middle in middles]

    def prompts(self, rows: Sequence[Row]) -> list[list[int]]:
        ids, histories = ([row[name] for row in rows] for name in ("row_id", "history"))
        return self.texts.encoder.encode_prompts(ids, histories, self.seed)

    def leaves(self, rows: Sequence[Row], num_candidates: int) -> torch.Tensor:
        """The target's leaf of each row, and those of random other titles: (B, G) i64."""
        tree = self.texts.tree
        target = tree.leaf_of_item[[row["target"] for row in rows]]
        others = min(num_candidates, len(tree.leaf_items)) - 1
        ids = [row["row_id"] for row in rows]
        return torch.cat(
            [target[:, None], random_leaves(tree, self.seed, ids, target, others)], dim=1
        )

    # --------------------------------------------------------------------------------- units

    def search(self, search: Search) -> Unit:
        """A row of a search, of a rollout by sampling, or of greedy writing."""
        search = search._replace(dtype=choose_dtype(search.dtype, CPU))
        unit: Unit = self.remember(search, lambda: self._search(search))
        return unit

    def _search(self, search: Search) -> Unit:
        split, batch_size, strategy, num_candidates, scoring, dtype = search
        searched: Searched = self.remember("searched", self._searched)
        model, tree = searched.model, searched.tree
        batches = self.batches(split, batch_size if self.is_timed else COUNTED_ROWS)

        def run(rows: list[Row]) -> None:
            prompts = searched.spell(self.prompts(rows))
            if strategy == "greedy":
                generate_greedy(model, tree, prompts)
                return
            roll_out(
                model,
                tree,
                prompts,
                strategy,
                min(num_candidates, len(tree.leaf_items)),
                row_seeds(self.seed, 0, [row["row_id"] for row in rows]),
                scoring,
                target=tree.leaf_of_item[[row["target"] for row in rows]],
            )

        with arithmetic(CPU, dtype):
            run(batches[0])  # the engine finds out about the model, once
            counter = Counter()
            hook = model.register_forward_hook(counter, with_kwargs=True)
            for rows in batches:
                run(rows)
            hook.remove()
            seconds = self.time(run, batches) if self.is_timed else None
        num_rows = sum(map(len, batches))
        prompts = [len(prompt) for rows in batches for prompt in self.prompts(rows)]
        prompt = sum(prompts) / num_rows
        seen = sum(n * (n + 1) // 2 for n in prompts) / num_rows  # of prompts, by themselves
        fed = max(0.0, counter.tokens / num_rows - prompt)  # behind the prompt
        passes, paths = counter.passes / BATCHES, num_candidates
        if strategy != "greedy":
            paths = num_samples(strategy, num_candidates)
        pairs = fed * prompt  # paths are short beside prompts
        if strategy.startswith("unconstrained"):  # each sequence has a prompt of its own
            paths = 1
        positions = counter.positions / num_rows
        logits = positions * logits_per_position(self.config, self.texts.tree, scoring)
        return Unit(
            Counts(prompt + fed, seen + pairs, logits, passes),
            Counts(paths * prompt + fed, paths * seen + pairs, logits, passes),
            seconds,
        )

    def _searched(self) -> "Searched":
        """A model that has learnt a little: the backbone's shape if it is timed.

        Else a small one that knows the tokens of titles only. As many are fed, in as many passes.
        """
        tree = self.texts.tree
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            if self.is_timed:
                model = random_model(self.config).eval()
                searched = Searched(model, tree, self.config.get_text_config().vocab_size)
            else:
                known, token = tree.token.unique(return_inverse=True)
                config = copy.deepcopy(self.config)
                text = config.get_text_config()
                text.vocab_size = len(known)
                text.bos_token_id = text.eos_token_id = text.pad_token_id = None
                searched = Searched(small_model(config)[0], replace(tree, token=token), len(known))
            if supports_shared_prompt(searched.model):  # which training needs
                self.fit(searched)
        return searched

    def fit(self, searched: "Searched") -> None:
        """Take some steps of SFT on the sample."""
        model, rows = searched.model, self.rows("train")
        optimizer = torch.optim.AdamW(model.parameters(), lr=FIT_RATE)
        for _ in range(FIT_STEPS):
            some = [rows[row] for row in torch.randint(len(rows), (FIT_ROWS,)).tolist()]
            prompts = [each[-FIT_TOKENS:] for each in searched.spell(self.prompts(some))]
            packed = pack_leaves(prompts, self.leaves(some, 1), searched.tree, "vocabulary")
            (-token_log_probs(model, packed).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()

    def score(
        self, options: TrainingOptions, num_candidates: int, scoring: Scoring, is_update: bool
    ) -> Unit:
        """A row whose candidates are scored in a pass of `options`; in an update also learnt from.

        The counts are those of the forward pass.
        """
        own = [getattr(options, name) for name in SPEED_OPTIONS]
        rows = getattr(options, options.rows_option)
        key = type(options), *own, rows, num_candidates, scoring, is_update
        unit: Unit = self.remember(
            key, lambda: self._score(options, num_candidates, scoring, is_update)
        )
        return unit

    def _score(
        self, options: TrainingOptions, num_candidates: int, scoring: Scoring, is_update: bool
    ) -> Unit:
        options = options.model_copy(update={"dtype": choose_dtype(options.dtype, CPU)})
        tree, width = self.texts.tree, self.config.get_text_config().vocab_size
        batches = self.batches("train", options.rows_per_pass)
        num_rows = sum(map(len, batches))
        shared, apart = Counts(passes=1), Counts(passes=1)
        for rows in batches:
            prompts, leaves = self.prompts(rows), self.leaves(rows, num_candidates)
            packed = pack_leaves(prompts, leaves, tree, scoring)
            shared = shared.plus(count_packed(packed, width), 1 / num_rows)
            apart = apart.plus(
                count_apart(prompts, leaves, packed, width, self.texts), 1 / num_rows
            )
        seconds = None
        if self.is_timed:
            seconds = self.time_scores(options, num_candidates, scoring, is_update, batches)
        return Unit(shared, apart, seconds)

    def time_scores(
        self,
        options: TrainingOptions,
        num_candidates: int,
        scoring: Scoring,
        is_update: bool,
        batches: list[list[Row]],
    ) -> float:
        """Seconds of a row: its share of a pass, and in an update of the optimiser's step."""
        with torch.random.fork_rng([]):
            model = prepare(random_model(self.config), options).eval()
        trained = [each for each in model.parameters() if each.requires_grad]
        optimizer = make_optimizer(trained, options)

        def run(rows: list[Row]) -> None:
            leaves = self.leaves(rows, num_candidates)
            packed = pack_leaves(self.prompts(rows), leaves, self.texts.tree, scoring)
            with arithmetic(CPU, options.dtype), torch.set_grad_enabled(is_update):
                if isinstance(options, RlOptions):
                    log_prob = token_scores(model, packed).log_prob
                else:
                    log_prob = token_log_probs(model, packed)
            if is_update:
                log_prob.mean().backward()

        def step(_: list[Row]) -> None:
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()

        seconds = self.time(run, batches)
        if is_update:
            seconds += self.time(step, [[{}]] * BATCHES) / getattr(options, options.rows_option)
        return seconds

    def time(self, run: Callable[[list[Row]], None], batches: list[list[Row]]) -> float:
        """Mean seconds of `run` by row, after a first time."""
        run(batches[0])
        repeated = batches * REPEATS
        started = time.perf_counter()
        for rows in repeated:
            run(rows)
        return (time.perf_counter() - started) / sum(map(len, repeated))


class Searched(NamedTuple):
    """A model, and the catalogue in its tokens."""

    model: PreTrainedModel
    tree: PrefixTree
    vocab_size: int

    def spell(self, prompts: list[list[int]]) -> list[list[int]]:
        """Prompts of as many tokens that the model has."""
        return [[token % self.vocab_size for token in prompt] for prompt in prompts]


class Counter:
    """A hook that counts the tokens, the positions with logits and the passes of a model."""

    tokens = positions = passes = 0

    def __call__(self, _: Any, __: Any, kwargs: dict[str, Any], output: Any) -> None:
        self.tokens += kwargs["input_ids"].numel()
        self.positions += output.logits[..., 0].numel()
        self.passes += 1


def count_packed(packed: PackedBatch, vocab_size: int) -> Counts:
    """What the forward pass over a packed batch computes, which is one pass."""
    pairs = int(packed.visible[packed.is_token].sum())
    return Counts(packed.num_tokens, pairs, packed.num_logits * vocab_size)


def count_apart(
    prompts: list[list[int]],
    leaves: torch.Tensor,
    packed: PackedBatch,
    vocab_size: int,
    texts: Texts,
) -> Counts:
    """The same if each candidate followed a prompt of its own."""
    prompt = torch.tensor([len(each) for each in prompts])[:, None]
    length = prompt + texts.tree.depth[leaves] - 1  # the last token is not fed
    predicted = int((packed.candidate < packed.num_candidates).sum())
    return Counts(
        int(length.sum()), int((length * (length + 1) // 2).sum()), predicted * vocab_size
    )
