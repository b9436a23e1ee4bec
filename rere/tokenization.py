"""The only place that turns a history into a prompt and a title into a response.

SFT, rollouts and evaluation all take their token ids from `PromptEncoder`, so that beginning of
sequence, spaces and quotes cannot differ between them. The layout is the paper's (an instruction
in one of eleven wordings, the quoted titles, a response header, the quoted title); the words are
our own.
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
"""A longer prompt loses its oldest items, as in the paper."""

CHUNK = 10_000
"""Texts tokenised at a time: what a tokenizer returns is many times as large as the ids in it."""


def choose_instruction(seed: int, row_id: int) -> str:
    """One of INSTRUCTIONS, a function of (seed, row id) alone: batches and devices play no part."""
    digest = hashlib.blake2b(f"{seed}/{row_id}".encode(), digest_size=8).digest()
    return INSTRUCTIONS[int.from_bytes(digest) % len(INSTRUCTIONS)]


def prompt_text(instruction: str, titles: Sequence[str]) -> str:
    """The prompt for a history of titles, oldest first."""
    history = SEPARATOR.join(f'"{title}"' for title in titles)
    return f"### Instruction:\n{instruction}\n\n### Input:\n{history}\n\n{RESPONSE_HEADER}"


def response_text(title: str) -> str:
    """What the model is to write for a title, before the end-of-sequence token."""
    return f'"{title}"\n'


def title_of(response: str) -> str:
    """The title in what a model wrote, whole or cut off: the inverse of `response_text`."""
    return response.removesuffix("\n").removeprefix('"').removesuffix('"')


class PromptEncoder:
    """Token ids of prompts and responses under one tokenizer and one catalogue.

    Raises InputError where the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, titles: Sequence[str]) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end-of-sequence token; a title could not end")
        self.tokenizer = tokenizer
        self.titles = titles
        # Ask the tokenizer itself whether it opens a sequence with BOS; a family name would guess.
        opening = tokenizer("a").input_ids[:1]
        self.opening = [i for i in opening if i == tokenizer.bos_token_id]

    def prompts(
        self, row_ids: Sequence[int], histories: Sequence[Sequence[int]], seed: int
    ) -> list[list[int]]:
        """Prompt ids of many rows; one over MAX_PROMPT_TOKENS loses its oldest items."""
        instructions = [choose_instruction(seed, row_id) for row_id in row_ids]
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
                raise InputError(
                    f"row {row_ids[row]}: its last item alone makes a prompt of "
                    f"{len(prompts[row])} tokens, over {MAX_PROMPT_TOKENS}; shorten the title"
                )
        return prompts

    def responses(self) -> list[list[int]]:
        """Response ids of every title of the catalogue as they follow a prompt, EOS included.

        Raises InputError naming the item whose title is empty, to the tokenizer at least, or
        whose tokens would merge with the prompt's.
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

    def written_titles(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """The titles that token ids of responses spell, whatever a model may have written."""
        texts = self.tokenizer.batch_decode(
            responses, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [title_of(text) for text in texts]

    def titles_alone(self, titles: Sequence[str]) -> list[list[int]]:
        """Token ids of titles without prompt and quotes; of one without any, EOS."""
        return [ids or [self.tokenizer.eos_token_id] for ids in self._encode(titles)]

    def fingerprint(self) -> str:
        """Hexadecimal sha256 of all that the responses depend on: tokenizer, wording, titles."""
        tokenizer = self.tokenizer
        is_fast = tokenizer.is_fast
        made_of = tokenizer.backend_tokenizer.to_str() if is_fast else tokenizer.get_vocab()
        wording = [RESPONSE_HEADER, *map(response_text, self.titles)]
        parts = [made_of, self.opening, tokenizer.eos_token_id, wording]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _encode(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Token ids of each text, after BOS where the tokenizer opens sequences with it."""
        texts = iter(texts)
        while chunk := list(itertools.islice(texts, CHUNK)):
            encoded = self.tokenizer(
                chunk,
                add_special_tokens=False,
                split_special_tokens=True,  # a title that spells one out is text like any other
                return_attention_mask=False,
            )
            yield from (self.opening + ids for ids in encoded.input_ids)
