"""Make or copy a backbone, a model with its tokenizer, and load it."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from rere.config.backbones import Pretrained, Tiny
from rere.config.run import MODEL_FILES
from rere.data.dataset import read_items, read_split
from rere.errors import InputError
from rere.files import replacing
from rere.tokenization import choose_instruction, prompt_text, response_text

WHOLE = 2**63
"""Bytes of a weight file at most: never split, so that its name is known beforehand."""

# Loading and saving are quick, and their progress bars would clutter a log.
disable_progress_bar()


def backbone(options: Tiny | Pretrained, corpus: Path | None, output: Path) -> None:
    """Write the weights (safetensors) and tokenizer of a backbone to the folder `output`.

    `corpus` is the data folder whose text trains the tokenizer of a `Tiny` backbone. Raises
    InputError if model or tokenizer would not be stored as MODEL_FILES, which the graph names.
    """
    if isinstance(options, Tiny):
        if corpus is None:
            raise InputError("backbone tiny: name the data folder to train its tokenizer on")
        tokenizer = Qwen2Tokenizer().train_new_from_iterator(
            training_text(corpus, options.seed), options.vocab_size, show_progress=False
        )
        model = tiny_model(options, tokenizer)
    else:
        source = (options.model, options.revision, options.gguf_file)
        tokenizer, model = load_tokenizer(*source), load_model(*source)
    # Drop the checkpoint's defaults for `generate`, such as sampling and penalties.
    model.generation_config = GenerationConfig()
    with replacing(output) as folder:
        save_model(model, tokenizer, folder)
        if wrong := {path.name for path in folder.iterdir()} ^ set(MODEL_FILES):
            raise InputError(
                f"{getattr(options, 'model', output)}: {type(tokenizer).__name__} and "
                f"{type(model).__name__} are stored with other files than usual "
                f"({', '.join(sorted(wrong))}); take a model with a tokenizer.json"
            )


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model and its tokenizer to `folder`, as MODEL_FILES."""
    model.save_pretrained(folder, max_shard_size=WHOLE)
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def load_tokenizer(
    model: str | Path, revision: str | None = None, gguf_file: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hugging Face id or a local folder; raise InputError on failure."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model, revision=revision, gguf_file=gguf_file, trust_remote_code=False
        )
    except (ImportError, OSError, ValueError) as error:
        raise InputError(f"{model}: cannot load a tokenizer ({first_line(error)})") from error
    if not tokenizer("a").input_ids:  # a folder without a vocabulary loads, too
        raise InputError(f"{model}: cannot load a tokenizer (its vocabulary is empty)")
    return tokenizer


def load_model(
    model: str | Path, revision: str | None = None, gguf_file: str | None = None
) -> PreTrainedModel:
    """Load the causal language model of a Hugging Face id or a local folder, in float32.

    Reads only safetensors, or `gguf_file`, whose weights are dequantised. Never runs code that
    comes with a checkpoint. Raises InputError if there is no such model or it lacks weights.
    """
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(
            model,
            revision=revision,
            gguf_file=gguf_file,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{model}: cannot load a language model ({first_line(error)})") from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{model}: cannot load a language model ({missing[0]} is missing, "
            f"{len(missing)} in all, and would be random)"
        )
    if gguf_file is not None:
        # The weights are floats now, but the model is still marked as quantised.
        loaded.is_quantized = False
        del loaded.hf_quantizer, loaded.config.quantization_config
    return loaded


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def training_text(data: Path, seed: int) -> Iterator[str]:
    """Yield the text that trains a tokenizer: all titles, and prompts with responses of train."""
    titles = read_items(data)["title"].to_list()
    yield from map(response_text, titles)
    train = read_split(data, "train").select("row_id", "history", "target")
    for row_id, history, target in train.iter_rows():
        instruction = choose_instruction(seed, row_id)
        yield prompt_text(instruction, [titles[i] for i in history]) + response_text(titles[target])


def tiny_model(options: Tiny, tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """Return a Qwen2 with random weights that depend on the options' seed."""
    set_seed(options.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        intermediate_size=2 * options.hidden_size,
        num_hidden_layers=options.num_layers,
        num_attention_heads=options.num_heads,
        num_key_value_heads=options.num_heads,
        max_position_embeddings=options.max_positions,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)
