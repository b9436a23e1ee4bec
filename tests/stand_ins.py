"""Language models of four families with random weights, in the place of the paper's.

Each has its family's own architecture and tokenizer class, as a folder that a study names like a
published model. The tokenizers are trained on the texts of the planted logs.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from planted_logs import DATASETS, planted_log
from tiny_models import sentencepiece
from tokenizers import Tokenizer, models
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rere.backbones import random_model
from rere.tokenization import INSTRUCTIONS, prompt_text, response_text

VOCAB_SIZE = 700
MAX_POSITIONS = 512
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def texts() -> list[str]:
    """Prompts and responses of all titles of the planted logs."""
    titles = [
        f"{title}"
        for name in DATASETS
        for title in planted_log(name).titles.values()
        if title is not None
    ]
    histories = [titles[n : n + 4] for n in range(0, len(titles), 4)]
    prompts = [
        prompt_text(INSTRUCTIONS[n % len(INSTRUCTIONS)], history)
        for n, history in enumerate(histories)
    ]
    return [*prompts, *map(response_text, titles)]


# ----------------------------------------------------------------------------------- tokenizers


def qwen2_tokenizer() -> PreTrainedTokenizerBase:
    return transformers.Qwen2Tokenizer().train_new_from_iterator(
        texts(), VOCAB_SIZE, show_progress=False
    )


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    return transformers.GPT2Tokenizer().train_new_from_iterator(
        texts(), VOCAB_SIZE, show_progress=False
    )


def llama_tokenizer() -> PreTrainedTokenizerBase:
    vocabulary, merges = byte_fallback(["<unk>", "<s>", "</s>"])
    return transformers.LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)


def gemma_tokenizer() -> PreTrainedTokenizerBase:
    vocabulary, merges = byte_fallback(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=merges)


def byte_fallback(special: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a SentencePiece BPE whose other characters are bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = sentencepiece(split_lines=True)
    trainer = BpeTrainer(vocab_size=VOCAB_SIZE - 256 - len(special), show_progress=False)
    trained.train_from_iterator(texts(), trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = [*special, *BYTES, *model["vocab"]]
    return {piece: i for i, piece in enumerate(pieces)}, [*map(tuple, model["merges"])]


# --------------------------------------------------------------------------------------- models


def qwen2(size: dict[str, int]) -> PreTrainedConfig:
    return transformers.Qwen2Config(**size, max_position_embeddings=MAX_POSITIONS)


def llama(size: dict[str, int]) -> PreTrainedConfig:
    return transformers.LlamaConfig(**size, max_position_embeddings=MAX_POSITIONS)


def gemma(size: dict[str, int]) -> PreTrainedConfig:
    head = size["hidden_size"] // size["num_attention_heads"]
    return transformers.GemmaConfig(**size, head_dim=head, max_position_embeddings=MAX_POSITIONS)


def gpt2(size: dict[str, int]) -> PreTrainedConfig:
    return transformers.GPT2Config(
        n_embd=size["hidden_size"],
        n_layer=size["num_hidden_layers"],
        n_head=size["num_attention_heads"],
        n_inner=size["intermediate_size"],
        n_positions=MAX_POSITIONS,
    )


def size(hidden: int, layers: int, heads: int = 4, key_value_heads: int = 2) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }


Family = tuple[Callable[[dict[str, int]], PreTrainedConfig], Callable[[], PreTrainedTokenizerBase]]
QWEN2, LLAMA = (qwen2, qwen2_tokenizer), (llama, llama_tokenizer)
GEMMA, GPT2 = (gemma, gemma_tokenizer), (gpt2, gpt2_tokenizer)
STAND_INS: dict[str, tuple[Family, dict[str, int]]] = {
    "qwen2-0.5b": (QWEN2, size(64, 2)),
    "qwen2.5-1.5b": (LLAMA, size(80, 2)),
    "gemma-2b": (GEMMA, size(112, 2, key_value_heads=1)),
    "qwen2.5-7b": (GPT2, size(128, 2)),
    "smollm2-135m": (LLAMA, size(48, 2)),
}
"""Family and size of what takes the place of each backbone of config/paper.yaml."""


def write_stand_in(name: str, folder: Path) -> None:
    """Write the model and the tokenizer in the place of a backbone of the paper to a folder."""
    (make_config, make_tokenizer), sizes = STAND_INS[name]
    tokenizer, config = make_tokenizer(), make_config(sizes)
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = random_model(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
