"""Token ids of prompt and response equal those of the joint text, with every tokenizer."""

import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TITLES, TOKENIZERS
from tokenizers import normalizers
from transformers import PreTrainedTokenizerBase

from rere.errors import InputError
from rere.tokenization import (
    INSTRUCTIONS,
    MAX_PROMPT_TOKENS,
    PromptEncoder,
    choose_instruction,
    parse_title,
    prompt_text,
    response_text,
)

KINDS = [*TOKENIZERS, "tiny"]
"""Kinds of `tokenizer_of`."""
STARTS_WITH_BOS = {"opt", "llama3", "llama2", "unigram"}
ANY_TITLE = st.text(max_size=12) | st.text('aT "\n\t\r,.#:▁', max_size=12)
each_kind = pytest.mark.parametrize("kind", KINDS)


def joint_ids(tokenizer: PreTrainedTokenizerBase, text: str, has_bos: bool) -> list[int]:
    """The ids of a whole text from the tokenizer's backend, perhaps after BOS."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    ids = backend.encode(text, add_special_tokens=False).ids
    return [tokenizer.bos_token_id] * has_bos + ids


def assert_joint(tokenizer, kind, titles, history, target):
    """The encoder's prompt and response together are the ids of their joint text."""
    encoder = PromptEncoder(tokenizer, titles)
    (prompt,) = encoder.encode_prompts([7], [history], seed=3)
    response = encoder.encode_responses()[target]
    text = prompt_text(choose_instruction(3, 7), [titles[item] for item in history])
    text += response_text(titles[target])
    expected = joint_ids(tokenizer, text, kind in STARTS_WITH_BOS)
    assert [*prompt, *response] == [*expected, tokenizer.eos_token_id]


# -------------------------------------------------------------------------------------- wording


def test_the_instruction_depends_on_seed_and_row_only():
    chosen = [choose_instruction(1, row) for row in range(200)]
    assert [choose_instruction(1, row) for row in reversed(range(200))] == chosen[::-1]
    assert [choose_instruction(2, row) for row in range(200)] != chosen
    # Golden: a change here would change every run.
    assert [INSTRUCTIONS.index(text) for text in chosen[:8]] == [5, 9, 7, 8, 5, 5, 5, 5]


def test_instructions_are_equally_frequent():
    chosen = [choose_instruction(0, row) for row in range(11_000)]
    counts = [chosen.count(instruction) for instruction in INSTRUCTIONS]
    # Binomial with n = 11,000, p = 1/11: mean 1,000, standard deviation 30.2.
    assert all(abs(count - 1000) < 5 * 30.2 for count in counts)


def test_instructions_are_eleven_distinct_lines():
    assert len(set(INSTRUCTIONS)) == 11
    assert not any("\n" in text for text in INSTRUCTIONS)


def test_the_layout_of_prompt_and_response():
    assert prompt_text("Pick.", ["Heat", 'A "B"']) == (
        '### Instruction:\nPick.\n\n### Input:\n"Heat",\t"A "B""\n\n### Response:\n'
    )
    assert response_text("Heat") == '"Heat"\n'


@given(title=ANY_TITLE)
def test_parse_title_inverts_response_text(title):
    assert parse_title(response_text(title)) == title


def test_titles_are_decoded_from_whole_and_cut_responses():
    encoder = PromptEncoder(tiny_models.tokenizer("qwen2"), TITLES)
    responses = encoder.encode_responses()
    assert encoder.decode_titles(responses) == TITLES
    (cut,) = encoder.decode_titles([responses[0][:-2]])  # without newline and quote
    assert TITLES[0].startswith(cut)
    assert encoder.decode_titles([[]]) == [""]


@each_kind
def test_an_encoded_title_is_never_empty(kind, tokenizer_of):
    encoder = PromptEncoder(tokenizer_of(kind), TITLES)
    encoded = encoder.encode_titles(["Heat", ""])
    assert encoder.encode_titles(["Heat"]) == encoded[:1]
    assert all(len(ids) >= 1 for ids in encoded)


@each_kind
def test_a_prompt_does_not_depend_on_its_batch(kind, tokenizer_of):
    encoder = PromptEncoder(tokenizer_of(kind), TITLES)
    histories = [[0], [1, 2, 3], [4, 5, 6, 7, 8], [11] * 10]
    together = encoder.encode_prompts([4, 9, 2, 7], histories, seed=5)
    alone = [
        encoder.encode_prompts([row], [history], seed=5)[0]
        for row, history in zip([4, 9, 2, 7], histories, strict=True)
    ]
    assert together == alone
    assert encoder.encode_prompts([], [], seed=5) == []


# ------------------------------------------------------------------------------------ token ids


@pytest.mark.parametrize("target", range(len(TITLES)), ids=TITLES)
@each_kind
def test_prompt_and_response_have_the_ids_of_the_joint_text(kind, tokenizer_of, target):
    assert_joint(tokenizer_of(kind), kind, TITLES, list(range(len(TITLES))), target)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(titles=st.lists(ANY_TITLE, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_title_has_the_ids_of_the_joint_text_or_is_refused(kind, titles):
    tokenizer = tiny_models.tokenizer(kind)
    try:
        PromptEncoder(tokenizer, titles).encode_responses()
    except InputError as error:
        assert any(repr(title) in str(error) for title in titles)
    else:
        assert_joint(tokenizer, kind, titles, list(range(len(titles))), len(titles) - 1)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_prompt_starts_with_one_bos_if_the_tokenizer_adds_it(kind):
    tokenizer = tiny_models.tokenizer(kind)
    encoder = PromptEncoder(tokenizer, TITLES)
    for prompt in encoder.encode_prompts([0, 1], [[0], [1, 2]], seed=0):
        assert prompt.count(tokenizer.bos_token_id) == (kind in STARTS_WITH_BOS)
        assert (prompt[0] == tokenizer.bos_token_id) == (kind in STARTS_WITH_BOS)


@each_kind
def test_a_response_ends_with_its_only_eos(kind, tokenizer_of):
    tokenizer = tokenizer_of(kind)
    for response in PromptEncoder(tokenizer, TITLES).encode_responses():
        assert response[-1] == tokenizer.eos_token_id
        assert response.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"unigram"}))
def test_special_tokens_in_a_title_are_plain_text(kind, tokenizer_of):
    # A unigram model's pieces may equal its special tokens.
    tokenizer = tokenizer_of(kind)
    titles = ["a </s> b <s>", "<|endoftext|>", "Heat"]
    encoder = PromptEncoder(tokenizer, titles)
    for response in encoder.encode_responses():
        assert tokenizer.eos_token_id not in response[:-1]
    assert_joint(tokenizer, kind, titles, [0, 1, 2], 0)
    assert_joint(tokenizer, kind, titles, [0, 1, 2], 1)
    (prompt,) = encoder.encode_prompts([0], [[0, 1]], seed=0)
    assert tokenizer.eos_token_id not in prompt[1:]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"unigram"}))
def test_a_response_decodes_to_its_title(kind, tokenizer_of):
    tokenizer = tokenizer_of(kind)
    encoder = PromptEncoder(tokenizer, TITLES)
    for title, response in zip(TITLES, encoder.encode_responses(), strict=True):
        assert tokenizer.decode(response[:-1]).strip(" \n") == f'"{title}"'


@each_kind
def test_equal_titles_have_equal_responses(kind, tokenizer_of):
    responses = PromptEncoder(tokenizer_of(kind), TITLES).encode_responses()
    assert responses[TITLES.index("Heat")] == responses[TITLES.index("Heat", 3)]


# ---------------------------------------------------------------------------- length and errors


def test_a_long_prompt_loses_its_oldest_items():
    tokenizer = tiny_models.tokenizer("gpt2")
    titles = [f"{letter * 40}" for letter in "abcdefghijklmnopqrst"]
    encoder = PromptEncoder(tokenizer, titles)
    (prompt,) = encoder.encode_prompts([0], [list(range(20))], seed=0)
    instruction = choose_instruction(0, 0)
    fitting = [
        ids
        for first in range(20)
        if len(ids := joint_ids(tokenizer, prompt_text(instruction, titles[first:]), False))
        <= MAX_PROMPT_TOKENS
    ]
    assert prompt == fitting[0]
    assert 1 < len(fitting) < 20


def test_a_title_longer_than_a_prompt_is_refused():
    encoder = PromptEncoder(tiny_models.tokenizer("gpt2"), ["ab", "xyz" * MAX_PROMPT_TOKENS])
    encoder.encode_prompts([40], [[1, 0]], seed=0)
    with pytest.raises(InputError, match="row_id 41: its last item alone"):
        encoder.encode_prompts([40, 41], [[1, 0], [0, 1]], seed=0)


def test_a_title_that_merges_with_the_header_is_refused():
    # Without a split at newlines, trained pieces contain them.
    tokenizer = tiny_models.unigram(split_lines=False)
    assert '▁Response:\n"' in tokenizer.tokenize('### Response:\n"Heat"\n')
    with pytest.raises(InputError, match=r"^item 0: title 'Heat' has no tokens of its own"):
        PromptEncoder(tokenizer, ["Heat"]).encode_responses()


@each_kind
def test_an_empty_title_is_refused(kind, tokenizer_of):
    with pytest.raises(InputError, match=r"^item 2: title '' has no tokens of its own"):
        PromptEncoder(tokenizer_of(kind), ["Heat", "Ran", "", "Alien"]).encode_responses()


def test_a_title_that_the_tokenizer_drops_is_refused():
    tokenizer = TOKENIZERS["qwen2"]()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(InputError, match=r"^item 1: title '\\u200b' has no tokens of its own"):
        PromptEncoder(tokenizer, ["Heat", "\u200b"]).encode_responses()


@each_kind
@pytest.mark.parametrize("size", [1, 2, 5])
def test_ids_do_not_depend_on_the_texts_per_call(kind, tokenizer_of, monkeypatch, size):
    encoder = PromptEncoder(tokenizer_of(kind), TITLES)
    histories = [[0], [1, 2], [3, 4], [5]]
    responses = encoder.encode_responses()
    prompts = encoder.encode_prompts(range(4), histories, seed=0)
    monkeypatch.setattr("rere.tokenization.TEXTS_PER_CALL", size)
    assert encoder.encode_responses() == responses
    assert encoder.encode_prompts(range(4), histories, seed=0) == prompts


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = tiny_models.gpt2()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        PromptEncoder(tokenizer, TITLES)
