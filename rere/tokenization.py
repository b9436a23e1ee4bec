"""Make prompts from histories and responses from titles, as text and token ids.

SFT, rollouts and evaluation all use `PromptEncoder`, so beginning of sequence, spaces and quotes
cannot differ between them. The layout is the paper's: one of eleven instructions, the quoted
titles, a response header, the quoted title. The wording is our own.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from rere.errors import InputError

INSTRUCTIONS = (
    "Name the item this user picks next.",
    "Given the items below, oldest first, say which one comes next.",
    "Continue this user's list by one item.",
    "Which item will this user choose after these?",
    "Read the user's past choices and predict the following one.",
    "Recommend the next item for someone who chose these in order.",
    "Work out from the history what the user wants next.",
    "What does this user turn to next?",
    "From this sequence of items, infer the one that follows.",
    "Suggest one more item that continues the sequence.",
    "The list is in order of time. Complete it with the next item.",
)
RESPONSE_HEADER = "### Response:\n"
SEPARATOR = ",\t"

MAX_PROMPT_TOKENS = 512
"""The oldest items are left out of a longer prompt, as in the paper."""

TEXTS_PER_CALL = 10_000
"""Texts tokenised at once, as a tokenizer's result takes many times the memory of the ids."""


def choose_instruction(seed: int, row_id: int) -> str:
    """Return one of INSTRUCTIONS, which depends only on seed and row id."""
    digest = hashlib.blake2b(f"{seed}/{row_id}".encode(), digest_size=8).digest()
    return INSTRUCTIONS[int.from_bytes(digest) % len(INSTRUCTIONS)]


def prompt_text(instruction: str, titles: Sequence[str]) -> str:
    """Return the prompt for a history of titles, oldest first."""
    history = SEPARATOR.join(f'"{title}"' for title in titles)
    return f"### Instruction:\n{instruction}\n\n### Input:\n{history}\n\n{RESPONSE_HEADER}"


def response_text(title: str) -> str:
    """Return the response for a title, without the end-of-sequence token."""
    return f'"{title}"\n'


def parse_title(response: str) -> str:
    """Return the title of a response, which may be cut off; inverts `response_text`."""
    return response.removesuffix("\n").removeprefix('"').removesuffix('"')


def shorten(title: str) -> str:
    """Return a title as a literal, cut after 40 characters."""
    return repr(title) if len(title) <= 40 else f"{title[:40]!r}..."


class PromptEncoder:
    """Encodes prompts and responses with one tokenizer and catalogue.

    Raises InputError if the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, titles: Sequence[str]) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no end-of-sequence token, with which a title ends; take another "
                "backbone"
            )
        self.tokenizer = tokenizer
        self.titles = titles
        # Not all tokenizers with a BOS token put it first.
        first = tokenizer("a").input_ids[:1]
        self.bos = [i for i in first if i == tokenizer.bos_token_id]

    def encode_prompts(
        self, row_ids: Sequence[int], histories: Sequence[Sequence[int]], seed: int
    ) -> list[list[int]]:
        """Return the token ids of rows' prompts, at most MAX_PROMPT_TOKENS each.

        Raises InputError if a history's last item alone takes more.
        """
        instructions = [choose_instruction(seed, row_id) for row_id in row_ids]
        return self._encode_prompts(instructions, histories, [f"row_id {row}" for row in row_ids])

    def encode_histories(self, histories: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the token ids of prompts that all have the first instruction."""
        instructions = list(INSTRUCTIONS[:1]) * len(histories)
        names = [f"history {number}" for number in range(len(histories))]
        return self._encode_prompts(instructions, histories, names)

    def _encode_prompts(
        self,
        instructions: Sequence[str],
        histories: Sequence[Sequence[int]],
        names: Sequence[str],
    ) -> list[list[int]]:
        texts = [
            prompt_text(instruction, [self.titles[item] for item in history])
            for instruction, history in zip(instructions, histories, strict=True)
        ]
        prompts = list(self._encode(texts))
        for row, (instruction, history) in enumerate(zip(instructions, histories, strict=True)):
            while len(prompts[row]) > MAX_PROMPT_TOKENS and len(history) > 1:
                history = history[1:]
                text = prompt_text(instruction, [self.titles[item] for item in history])
                (prompts[row],) = self._encode([text])
            if len(prompts[row]) > MAX_PROMPT_TOKENS:
                title = self.titles[history[-1]] if history else ""
                raise InputError(
                    f"{names[row]}: its last item alone gives a prompt of "
                    f"{len(prompts[row])} tokens, over {MAX_PROMPT_TOKENS}; shorten the title "
                    f"{shorten(title)} or filter it out (max_title_words)"
                )
        return prompts

    def encode_responses(self) -> list[list[int]]:
        """Return the token ids of each title's response, as they follow a prompt, with EOS.

        Raises InputError if a title has no tokens, or its tokens merge with the prompt's.
        """
        header, untitled = self._encode([RESPONSE_HEADER, RESPONSE_HEADER + response_text("")])
        encoded = self._encode(RESPONSE_HEADER + response_text(title) for title in self.titles)
        responses = []
        for item, (title, ids) in enumerate(zip(self.titles, encoded, strict=True)):
            if ids == untitled or ids[: len(header)] != header or len(ids) == len(header):
                raise InputError(
                    f"item {item}: title {title!r} has no tokens of its own after the prompt; "
                    "rename it or leave it out"
                )
            responses.append([*ids[len(header) :], self.tokenizer.eos_token_id])
        return responses

    def decode_titles(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Return the titles in generated responses, which may be any text."""
        texts = self.tokenizer.batch_decode(
            responses, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [parse_title(text) for text in texts]

    def encode_titles(self, titles: Sequence[str]) -> list[list[int]]:
        """Return the token ids of titles without prompt and quotes; EOS for an empty one."""
        return [ids or [self.tokenizer.eos_token_id] for ids in self._encode(titles)]

    def fingerprint(self) -> str:
        """Return a hexadecimal sha256 of all that responses depend on."""
        tokenizer = self.tokenizer
        is_fast = tokenizer.is_fast
        model = tokenizer.backend_tokenizer.to_str() if is_fast else tokenizer.get_vocab()
        texts = [RESPONSE_HEADER, *map(response_text, self.titles)]
        content = [model, self.bos, tokenizer.eos_token_id, texts]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _encode(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Yield the token ids of each text, after BOS if the tokenizer puts it first."""
        texts = iter(texts)
        while batch := list(itertools.islice(texts, TEXTS_PER_CALL)):
            encoded = self.tokenizer(
                batch,
                add_special_tokens=False,
                split_special_tokens=True,  # also in titles, which are plain text
                return_attention_mask=False,
            )
            yield from (self.bos + ids for ids in encoded.input_ids)
