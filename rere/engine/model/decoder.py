"""Decoders that compute prompts once and candidate tokens as a tree behind them.

`SharedPromptDecoder` feeds new tokens as further query positions of one sequence per row. A mask
says which cached tokens each of them follows, so that nothing is copied or reordered in the cache.
`FullSequenceDecoder` computes every token from a whole sequence of its own. It serves
architectures whose attention does not follow such a mask, and is the reference that
`SharedPromptDecoder` is checked against.

B rows, L prompt tokens (left-padded), S tokens fed so far, Q tokens fed now, N logits, V
vocabulary.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rere.engine.model.attention import in_rows, own_attention
from rere.engine.model.forward import forward_logits
from rere.engine.model.head import head_in_float32
from rere.engine.model.masks import causal, layer_windows
from rere.engine.model.padding import left_pad, right_pad, token_positions
from rere.engine.model.unpadding import UnpaddedTokens
from rere.errors import InputError

log = logging.getLogger(__name__)


@contextmanager
def eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Switch to eval mode: no dropout, and no gradient checkpointing, which would drop the cache.

    Attention to shared heads makes no copies meanwhile (`rere.engine.model.attention`), and logits
    are in float32 (`rere.engine.model.head`).
    """
    training = model.training
    model.eval()
    try:
        with own_attention(model), head_in_float32(model):
            yield
    finally:
        model.train(training)


def make_decoder(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> "SharedPromptDecoder | FullSequenceDecoder":
    """A decoder for prompts with up to `max_new_tokens` behind them, exact for any causal model.

    Raises InputError where they exceed the model's positions.
    """
    check_positions(model, prompts, max_new_tokens)
    if supports_shared_prompt(model):
        return SharedPromptDecoder(model, prompts)
    return FullSequenceDecoder(model, prompts)


def check_positions(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Raise InputError where prompts and `max_new_tokens` exceed the model's positions."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    prompt_length = max(map(len, prompts))
    # The last token is predicted, never fed.
    if limit is not None and prompt_length + max_new_tokens - 1 > limit:
        raise InputError(
            f"a prompt of {prompt_length} tokens and titles of up to {max_new_tokens} exceed the "
            f"model's {limit} positions; shorten the histories or take another model"
        )


class SharedPromptDecoder:
    """A batch's prompts in a key-value cache, and the tokens fed behind them."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.prompts = model, prompts
        self.cache = Cache(layer_class_to_replicate=GrowingLayer)
        self.prompt_length = torch.tensor([[len(p)] for p in prompts], device=model.device)

    def prefill(self, opening: Tensor, logits_to_keep: int) -> Tensor:
        """Compute the prompts, each followed by `opening` (X,), the start of all titles.

        Returns the logits after the last `logits_to_keep` tokens of each row,
        (B logits_to_keep, V).
        """
        ids, is_token = (tensor.to(self.model.device) for tensor in left_pad(self.prompts))
        ids = torch.cat([ids, opening.expand(len(ids), -1)], dim=1)
        self.is_token = pad(is_token, (0, len(opening)), value=True)
        self.position = ids[:, :0]
        visible, position = causal(self.is_token), token_positions(self.is_token)
        num_tokens = sum(map(len, self.prompts)) + len(ids) * len(opening)
        tokens = UnpaddedTokens(
            self.is_token, num_tokens, logits_to_keep, len(ids) * logits_to_keep
        )
        return self._forward(ids, position, visible, tokens)

    def feed(self, ids: Tensor, depth: Tensor, visible: Tensor, tokens: UnpaddedTokens) -> Tensor:
        """Feed the ids (B, Q) of `tokens`, which lie `depth` (B, Q) tokens behind the prompt.

        `visible` (B, Q, S + Q) says which of the tokens fed before and now each one follows,
        itself included, in the order of its path. Returns the logits that `tokens` needs, (N, V).
        """
        prompt = self.is_token[:, None, :].expand(-1, ids.shape[1], -1)
        visible = torch.cat([prompt, visible], dim=-1)
        return self._forward(ids, self.prompt_length + depth, visible, tokens)

    def keep(self, kept: Tensor) -> None:
        """Drop all fed tokens but `kept` (B, K), in that order."""
        start = self.is_token.shape[1]
        fed = self.position[:, start:].gather(1, kept)
        self.position = torch.cat([self.position[:, :start], fed], dim=1)
        for layer in self.cache.layers:
            layer.keep(start, kept)

    def select(self, rows: Tensor) -> None:
        """Drop all rows but `rows` (R,)."""
        self.is_token, self.position = self.is_token[rows], self.position[rows]
        self.prompt_length = self.prompt_length[rows]
        self.cache.batch_select_indices(rows)

    def _forward(
        self, ids: Tensor, position: Tensor, visible: Tensor, tokens: UnpaddedTokens
    ) -> Tensor:
        self.position = torch.cat([self.position, position], dim=1)
        return forward_logits(
            self.model, ids, position, visible, self.position, tokens, past_key_values=self.cache
        )


class GrowingLayer(DynamicLayer):
    """A cache layer with spare capacity, so that a pass copies nothing but its own tokens.

    transformers' layer copies the whole cache in every pass. Sliding windows are left to the mask,
    since a token that is out of one path's window may be in another's.
    """

    length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        # Rotary embeddings leave keys in float32 under autocast, which attention would round to the
        # values' dtype in each pass.
        key_states = in_rows(key_states).to(value_states.dtype)
        value_states = in_rows(value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.keys, self.values = (self._grow(x, end) for x in (self.keys, self.values))
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, start: int, kept: Tensor) -> None:
        """Drop all tokens behind the first `start` but `kept` (B, K)."""
        self.length = start + kept.shape[1]
        at = (start + kept)[:, None, :, None]
        for states in (self.keys, self.values):
            index = at.expand(-1, states.shape[1], -1, states.shape[-1])
            states[:, :, start : self.length] = states.gather(2, index)

    def _grow(self, states: Tensor, end: int) -> Tensor:
        batch, heads, _, width = states.shape
        grown = states.new_empty(batch, heads, end + end // 2, width)
        grown[:, :, : self.length] = states[:, :, : self.length]
        return grown

    def get_seq_length(self) -> int:
        return self.length


class FullSequenceDecoder:
    """The interface of SharedPromptDecoder, each token computed from a whole sequence of its own.

    It needs no cache, mask or positions: a causal model does not see padding on the right.
    """

    MAX_LOGITS = 2**27
    """Logits per forward pass at most; a pass computes those of every position."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.prompt = right_pad([list(p) for p in prompts], 0).to(model.device)  # (B, L)
        self.prompt_length = torch.tensor([[len(p)] for p in prompts], device=model.device)

    def prefill(self, opening: Tensor, logits_to_keep: int) -> Tensor:
        self.fed = opening.expand(len(self.prompt), -1)
        self.num_opening = len(opening)
        first = 1 + len(opening) - logits_to_keep
        after = torch.arange(first, 1 + len(opening), device=opening.device)
        seen = torch.arange(len(opening), device=opening.device) < after[:, None]
        return self._logits(seen.expand(len(self.prompt), -1, -1)).flatten(0, 1)

    def feed(self, ids: Tensor, depth: Tensor, visible: Tensor, tokens: UnpaddedTokens) -> Tensor:
        self.fed = torch.cat([self.fed, ids], dim=1)
        visible = pad(visible[:, -tokens.logits_to_keep :], (self.num_opening, 0), value=True)
        return tokens.drop_padding(self._logits(visible))

    def keep(self, kept: Tensor) -> None:
        fed = self.fed[:, self.num_opening :].gather(1, kept)
        self.fed = torch.cat([self.fed[:, : self.num_opening], fed], dim=1)

    def select(self, rows: Tensor) -> None:
        self.prompt, self.prompt_length = self.prompt[rows], self.prompt_length[rows]
        self.fed = self.fed[rows]

    def _logits(self, visible: Tensor) -> Tensor:
        """Logits (B, P, V) after prompt and fed tokens `visible` (B, P, S) of P paths, in order."""
        num_rows, num_paths, _ = visible.shape
        count = visible.sum(-1, keepdim=True)
        path = visible.int().argsort(dim=-1, descending=True, stable=True)[..., : count.max()]
        path = self.fed[:, None, :].expand(-1, num_paths, -1).gather(2, path)
        prompt = self.prompt[:, None, :].expand(-1, num_paths, -1)
        # Move each path to the end of its prompt, before the prompt's padding.
        column = torch.arange(prompt.shape[-1] + path.shape[-1], device=path.device)
        length = self.prompt_length[:, :, None]
        source = torch.where(column < length, column, prompt.shape[-1] + column - length)
        source = source.clamp(max=len(column) - 1).expand(-1, num_paths, -1)
        ids = torch.cat([prompt, path], dim=-1).gather(2, source).flatten(0, 1)
        last = (length + count - 1).flatten()

        vocab_size = self.model.config.get_text_config().vocab_size
        num_at_once = max(1, self.MAX_LOGITS // (ids.shape[1] * vocab_size))
        chunks = zip(ids.split(num_at_once), last.split(num_at_once), strict=True)
        logits = [
            self.model(input_ids=chunk, use_cache=False).logits[range(len(chunk)), end]
            for chunk, end in chunks
        ]
        return torch.cat(logits).view(num_rows, num_paths, -1)


_supports_shared_prompt: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def supports_shared_prompt(model: PreTrainedModel) -> bool:
    """Whether SharedPromptDecoder is exact for a model; tried once, with a warning if it is not."""
    if model not in _supports_shared_prompt:
        fault = find_mask_fault(model)
        _supports_shared_prompt[model] = fault is None
        if fault is not None:
            log.warning(
                "%s: its attention ignores masks by position (%s); every candidate is "
                "computed with its whole prompt, which is exact but slow",
                type(model).__name__,
                fault,
            )
    return _supports_shared_prompt[model]


def follows_attention_mask(model: PreTrainedModel) -> bool:
    """Whether both decoders agree on a small tree behind two prompts."""
    return find_mask_fault(model) is None


def find_mask_fault(model: PreTrainedModel) -> str | None:
    """Why the decoders would not agree on a small tree behind two prompts; None if they do."""
    config = model.config.get_text_config()
    # ALiBi and recurrent layers ignore position ids. Chunks and GPT-Neo's local layers are windows
    # that ignore the mask, which a small tree would not reveal.
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "it takes no position ids"
    if other := layer_windows(config).keys() - {"full_attention", "sliding_attention"}:
        return f"it has layers of {', '.join(sorted(other))}"
    if getattr(config, "attention_chunk_size", None) is not None:
        return "it attends within chunks"
    if "local" in getattr(config, "attention_layers", ()):
        return "it has local layers"

    def logits(decoder: SharedPromptDecoder | FullSequenceDecoder) -> Tensor:
        """After the prompt, after 32 children of it, and after a child of the first child."""
        ids = torch.arange(32, device=model.device).expand(2, -1) % 2
        itself = torch.eye(32, dtype=torch.bool, device=model.device).expand(2, -1, -1)
        path = torch.arange(33, device=model.device) % 32 == 0
        first = decoder.prefill(ids[0, :0], logits_to_keep=1)
        all_of = UnpaddedTokens(
            torch.ones_like(ids, dtype=torch.bool), ids.numel(), 32, ids.numel()
        )
        second = decoder.feed(ids, torch.zeros_like(ids), itself, all_of)
        # Only the first row has a child.
        one = UnpaddedTokens(torch.tensor([[True], [False]], device=ids.device), 1, 1, 1)
        third = decoder.feed(ids[:, 1:2], torch.ones_like(ids[:, :1]), path.expand(2, 1, -1), one)
        return torch.cat([first, second, third]).double()

    prompts = [[0, 1, 2], [1]]
    expected = logits(FullSequenceDecoder(model, prompts))
    try:
        actual = logits(SharedPromptDecoder(model, prompts))
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return f"it raises {type(error).__name__}"
    finite = expected.isfinite()  # a model may rule tokens out
    actual, expected = actual[finite], expected[finite]
    # Right and wrong differ by orders of magnitude in the norm, but not in single bfloat16 logits.
    # Some models always compute the softmax in float32.
    kind = model.device.type
    is_mixed = torch.is_autocast_enabled(kind)
    arithmetic = torch.get_autocast_dtype(kind) if is_mixed else model.dtype
    eps = max(torch.finfo(arithmetic).eps, torch.finfo(torch.float32).eps)
    spread = (expected - expected.mean()).norm()
    agree = (actual - expected).norm() <= eps ** (1 / 3) * spread
    return None if agree else "its scores behind a shared prompt are others"
