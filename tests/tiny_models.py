"""Tiny models, tokenizers and data folders, made in code without downloads."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import gguf
import torch
import transformers
from data_frames import items_frame, split_frame, users_frame
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rere.config.backbones import Tiny
from rere.tokenization import INSTRUCTIONS, prompt_text, response_text

TITLES = [
    "Toy Story (1995)",
    "Toy Story 2 (1999)",
    "Heat",
    'The "Weird" One',
    "Tab\tbed",
    "Two\nlines",
    "Café ☕ 🙂",
    "  spaces  ",
    "東京物語",
    "Heat",
    '"',
    "AC/DC 220V, 10% off!!!",
]

# ----------------------------------------------------------------------------------- tokenizers


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """One of TOKENIZERS, trained on prompts and responses of the first four TITLES."""
    return TOKENIZERS[kind]()


def corpus() -> list[str]:
    return [
        prompt_text(instruction, TITLES[:4]) + response_text(title)
        for instruction in INSTRUCTIONS
        for title in TITLES[:4]
    ]


def qwen2() -> PreTrainedTokenizerBase:
    """Byte-level BPE without BOS, which joins a newline to the punctuation before it."""
    return transformers.Qwen2Tokenizer().train_new_from_iterator(corpus(), 400, show_progress=False)


def gpt2() -> PreTrainedTokenizerBase:
    """Byte-level BPE whose BOS equals its EOS and does not start sequences."""
    return transformers.GPT2Tokenizer().train_new_from_iterator(corpus(), 400, show_progress=False)


def opt() -> PreTrainedTokenizerBase:
    """Byte-level BPE whose BOS equals its EOS and starts every sequence."""
    backend = byte_level("</s>")
    backend.post_processor = template("</s> $A", backend, "</s>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="</s>", eos_token="</s>")


def eos_closed() -> PreTrainedTokenizerBase:
    """Byte-level BPE whose EOS equals its BOS and ends every sequence."""
    backend = byte_level("</s>")
    backend.post_processor = template("$A </s>", backend, "</s>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="</s>", eos_token="</s>")


def llama3() -> PreTrainedTokenizerBase:
    """Byte-level BPE that starts sequences with BOS."""
    backend = byte_level("<s>", "</s>")
    backend.post_processor = template("<s> $A", backend, "<s>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def llama2() -> PreTrainedTokenizerBase:
    """SentencePiece BPE with BOS, a prefix space, byte fallback, and no pre-tokenizer."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = sentencepiece(split_lines=True)
    trained.train_from_iterator(corpus(), BpeTrainer(vocab_size=150, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *bytes_, *model["vocab"]]
    return transformers.LlamaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[tuple(merge) for merge in model["merges"]],
        add_bos_token=True,
    )


def unigram(split_lines: bool = True) -> PreTrainedTokenizerBase:
    """SentencePiece unigram model with BOS, a prefix space, and an unknown token."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = sentencepiece(split_lines)
    special = ["<unk>", "<s>", "</s>"]
    trainer = UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(corpus(), trainer)
    backend.post_processor = template("<s> $A", backend, "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def byte_level(*special: str) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    return backend


def sentencepiece(split_lines: bool) -> pre_tokenizers.PreTokenizer:
    marker = pre_tokenizers.Metaspace(prepend_scheme="first")
    lines = pre_tokenizers.Split("\n", "isolated")
    return pre_tokenizers.Sequence([marker, lines]) if split_lines else marker


def template(single: str, backend: Tokenizer, special: str) -> TemplateProcessing:
    return TemplateProcessing(single, special_tokens=[(special, backend.token_to_id(special))])


TOKENIZERS = {
    make.__name__: make for make in (qwen2, gpt2, opt, eos_closed, llama3, llama2, unigram)
}

# --------------------------------------------------------------------------------------- models

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
MIXED_LAYERS = ["sliding_attention", "full_attention"]
GROUPED = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 2}
VOCAB_SIZE = 24
WINDOWED = {**GROUPED, "head_dim": 8, "sliding_window": 5}
LLAMA3_ROPE = {
    **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0},
    **{"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
}
FAMILIES = {
    "qwen2": (transformers.Qwen2Config, GROUPED),
    "qwen3": (transformers.Qwen3Config, {**GROUPED, "head_dim": 8}),
    "llama": (transformers.LlamaConfig, GROUPED),
    "llama3": (transformers.LlamaConfig, {**GROUPED, "rope_parameters": LLAMA3_ROPE}),
    "gpt2": (transformers.GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 4}),
    "opt": (transformers.OPTConfig, {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16}),
    "gpt_neox": (transformers.GPTNeoXConfig, {**SIZES, "intermediate_size": 32}),
    "phi": (transformers.PhiConfig, {**SIZES, "intermediate_size": 32}),
    "gemma2": (transformers.Gemma2Config, WINDOWED),
    "gemma3": (transformers.Gemma3TextConfig, {**WINDOWED, "layer_types": MIXED_LAYERS}),
    "mistral": (transformers.MistralConfig, WINDOWED),
    "qwen2_windows": (
        transformers.Qwen2Config,
        {**GROUPED, "use_sliding_window": True, "sliding_window": 5, "layer_types": MIXED_LAYERS},
    ),
}
"""Architectures with rotary and learned positions, grouped heads, biases, soft-capping, windows."""

MASK_IGNORING = {
    "gpt_neo": (
        transformers.GPTNeoConfig,
        {
            **{"hidden_size": 16, "num_layers": 2, "num_heads": 4, "window_size": 5},
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "bloom": (transformers.BloomConfig, {"hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "mpt": (transformers.MptConfig, {"d_model": 16, "n_layers": 2, "n_heads": 4}),
    "mamba": (transformers.MambaConfig, {"hidden_size": 16, "num_hidden_layers": 2}),
}
"""Architectures that ignore an attention mask: local windows, ALiBi, a recurrence."""


TINY = Tiny(vocab_size=400, hidden_size=16, num_layers=1, num_heads=2, max_positions=128)
"""Options of a backbone that is made from scratch."""


def causal_lm(family: str, vocab_size: int, seed: int = 0, **changes) -> PreTrainedModel:
    """A model in eval mode with weights so large that all sequences have different scores."""
    make_config, sizes = (FAMILIES | MASK_IGNORING)[family]
    config = make_config(
        vocab_size=vocab_size,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **{"max_position_embeddings": 256, **sizes, **changes},
    )
    generator = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.4, generator=generator)
    return model.eval()


def precise(family: str, **changes) -> PreTrainedModel:
    """A `causal_lm` of VOCAB_SIZE tokens in float64, to compare implementations.

    Gemma-2 stays in float32, in which its attention always computes the softmax.
    """
    model = causal_lm(family, VOCAB_SIZE, **changes)
    return model if family == "gemma2" else model.double()


def tolerance(model: PreTrainedModel) -> float:
    """Largest difference of log-probabilities that rounding explains."""
    return 1e-9 if model.dtype == torch.float64 else 1e-4


def write_fixed_model(folder: Path) -> Path:
    """Write a model and tokenizer with fixed weights to a folder."""
    causal_lm("qwen2", len(tokenizer("qwen2"))).save_pretrained(folder)
    tokenizer("qwen2").save_pretrained(folder)
    return folder


def write_gguf(path: Path, **changes: float) -> None:
    """Write a Qwen2 of half-precision weights and its tokenizer; `changes` fill tensors by name."""
    model, vocabulary = causal_lm("qwen2", len(tokenizer("qwen2"))), tokenizer("qwen2")
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    backend = json.loads(vocabulary.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary.convert_ids_to_tokens(range(len(vocabulary))))
    writer.add_token_merges([" ".join(merge) for merge in backend["merges"]])
    writer.add_eos_token_id(vocabulary.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        values = weight.half().fill_(changes[name]) if name in changes else weight.half()
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def unigram_lm(probabilities: Sequence[float]) -> PreTrainedModel:
    """A float64 model whose next token has these probabilities after any tokens."""
    model = causal_lm("phi", len(probabilities)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.lm_head.bias.copy_(torch.tensor(probabilities, dtype=torch.float64).log())
    return model


# ----------------------------------------------------------------------------------------- data


def write_data(
    folder: Path, titles: Sequence[str], **splits: Sequence[tuple[Sequence[int], int]]
) -> Path:
    """Write a data folder of `titles` with rows (history, target) per split; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = [target for _, target in splits.get("train", [])]
    counts = [targets.count(item) for item in range(len(titles))]
    items_frame(titles, counts).write_parquet(folder / "items.parquet")
    users_frame(max(map(len, splits.values()), default=0)).write_parquet(folder / "users.parquet")
    row_id = 0
    for split, rows in splits.items():
        columns = [history for history, _ in rows], [target for _, target in rows]
        split_frame(*columns, first_row=row_id).write_parquet(folder / f"{split}.parquet")
        row_id += len(rows)
    return folder


CYCLE = ["Alpha One", "Beta", "Gamma Rays", "Delta", "Epsilon Five", "Zeta", "Eta Seven", "Theta"]
"""Titles of a catalogue in which each user takes the items in turn, as a cycle."""


def write_cycle(folder: Path) -> Path:
    """Write a data folder whose targets follow the last item in CYCLE, without a test split."""
    rows = [
        ([(start + step) % len(CYCLE) for step in range(length)], (start + length) % len(CYCLE))
        for start in range(len(CYCLE))
        for length in (1, 2, 3)
    ]
    return write_data(folder, CYCLE, train=rows * 4, valid=rows)
