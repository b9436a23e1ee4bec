"""Make or copy a backbone, a model with its tokenizer, and load it."""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from rere.adapters import check_base, find_base, is_adapters, merge_adapters
from rere.backbone_lock import read_commits, record_commit
from rere.config.backbones import Pretrained, Tiny
from rere.config.options import Precision
from rere.config.run import CARD, MODEL_FILES
from rere.data.dataset import read_items, read_split
from rere.devices import choose_device, choose_dtype
from rere.errors import InputError, first_line, out_of_memory
from rere.files import replacing
from rere.model_card import Base, backbone_card, read_base
from rere.tokenization import choose_instruction, prompt_text, response_text

LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
PIECES = (
    r" ?[\p{L}\p{M}']+"  # a word
    r"| ?\(?\p{N}+\)?"  # a number, such as a year
    r"| ?[^\p{L}\p{M}\p{N}' \n]+\n*|\n+"  # other marks; a title starts a line, so a piece
)
"""What a token of a `Tiny` backbone lies in, with the space before it."""
WHOLE = 2**63
"""Bytes of a weight file at most: never split, so that its name is known beforehand."""

# Loading and saving are quick, and their progress bars would clutter a log.
disable_progress_bar()


def backbone(
    options: Tiny | Pretrained, corpus: Path | None, output: Path, lock: Path | None = None
) -> None:
    """Write the weights (safetensors), tokenizer and card of a backbone to the folder `output`.

    `corpus` is the data folder whose text trains the tokenizer of a `Tiny` backbone. `lock` has the
    commits of models on the hub (`choose_commit`). Raises InputError if model or tokenizer would
    not be stored as MODEL_FILES, which the graph names.
    """
    commit = None
    if isinstance(options, Tiny):
        assert corpus is not None
        tokenizer = train_tokenizer(training_text(corpus, options.seed), options.vocab_size)
        model = tiny_model(options, tokenizer)
    else:
        commit = choose_commit(options, lock)
        source = (options.model, commit, options.gguf_file)
        tokenizer, model = load_tokenizer(*source), load_model(*source)
    with replacing(output) as folder:
        save_model(model, tokenizer, folder)
        if wrong := {path.name for path in folder.iterdir()} ^ set(MODEL_FILES):
            raise InputError(
                f"{getattr(options, 'model', output)}: {type(tokenizer).__name__} and "
                f"{type(model).__name__} are stored with other files than usual "
                f"({', '.join(sorted(wrong))}); take a model with a tokenizer.json"
            )
        (folder / CARD).write_text(describe(options, corpus, commit), encoding="utf-8")


def choose_commit(options: Pretrained, lock: Path | None) -> str | None:
    """The commit of a Hugging Face id to take; None for a folder.

    That of the options' revision, else that recorded in the file `lock`, else the newest, which is
    then recorded there. Raises InputError if the hub has no such model or commit, or refuses.
    """
    if Path(options.model).is_dir():
        return None
    file = options.gguf_file or "config.json"
    if options.revision is not None or lock is None:
        return find_commit(options.model, file, options.revision)
    recorded = read_commits(lock).get(options.model)
    try:
        commit = find_commit(options.model, file, recorded)
    except InputError as error:
        if recorded is None or not isinstance(error.__cause__, RevisionNotFoundError):
            raise
        raise InputError(
            f"{lock}: {options.model} has no commit {recorded} on the Hugging Face hub; correct or "
            "delete the line"
        ) from error
    return commit if recorded else record_commit(lock, options.model, commit)


def find_commit(model: str, file: str, revision: str | None) -> str:
    """The commit that a branch or tag of a Hugging Face id is at; offline, that in the cache.

    `file` is one that the model has. It is downloaded. Raises InputError as `load_model`.
    """
    with refusing(model, "a language model"):
        path = Path(hf_hub_download(model, file, revision=revision))
    return path.parents[len(Path(file).parts) - 1].name


def describe(options: Tiny | Pretrained, corpus: Path | None, commit: str | None) -> str:
    """The card of a backbone, with what is known of the published model."""
    if isinstance(options, Tiny):
        assert corpus is not None
        text = f"A Llama with random weights, and a tokenizer of {corpus.resolve().name}."
        return backbone_card(text, Base(is_random=True))
    folder = Path(options.model)
    if folder.is_dir():
        return backbone_card(f"A copy of {folder.resolve().name}.", read_base(folder))
    try:
        path = hf_hub_download(options.model, CARD, revision=commit)
        licence = read_base(Path(path).parent).license
    except OSError:  # no card, or no network now
        licence = {}
    text = f"A copy of {options.model}, commit {commit}."
    return backbone_card(text, Base(options.model, licence, commit=commit))


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model and its tokenizer to `folder`, as MODEL_FILES, for use with a cache."""
    model.config.use_cache = True  # training sets it to False
    model.generation_config = special_tokens(model.generation_config, tokenizer)
    model.save_pretrained(folder, max_shard_size=WHOLE)
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def special_tokens(
    defaults: GenerationConfig, tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """What `generate` needs of a checkpoint's defaults, without sampling, penalties and the like.

    It stops at the tokenizer's EOS, which ends every response, even if the checkpoint names others.
    """
    eos = defaults.eos_token_id
    if tokenizer.eos_token_id not in (None, *(eos if isinstance(eos, list) else [eos])):
        eos = tokenizer.eos_token_id
    bos, pad = defaults.bos_token_id, defaults.pad_token_id
    return GenerationConfig(
        eos_token_id=eos,
        bos_token_id=tokenizer.bos_token_id if bos is None else bos,
        pad_token_id=tokenizer.pad_token_id if pad is None else pad,
    )


def load_tokenizer(
    model: str | Path, revision: str | None = None, gguf_file: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hugging Face id or a local folder; raise InputError on failure."""
    with refusing(model, "a tokenizer"):
        if gguf_file is not None:
            check_gguf(Path(model, gguf_file))
        tokenizer = AutoTokenizer.from_pretrained(
            model, revision=revision, gguf_file=gguf_file, trust_remote_code=False
        )
        if not tokenizer("a").input_ids:  # a folder without a vocabulary loads, too
            raise ValueError("its vocabulary is empty")
    return tokenizer


def load_model(
    model: str | Path, revision: str | None = None, gguf_file: str | None = None
) -> PreTrainedModel:
    """Load the causal language model of a Hugging Face id or a local folder, in float32.

    Adapters are merged with their base. Reads only safetensors, or `gguf_file`, whose weights are
    dequantised. Never runs code that comes with a checkpoint. Raises InputError if there is no such
    model, or if weights are missing, infinite or NaN.
    """
    if gguf_file is None and is_adapters(model):
        return load_adapted(Path(model))
    with refusing(model, "a language model"):
        if gguf_file is not None:
            check_gguf(Path(model, gguf_file))
        elif Path(model).is_dir():
            check_sizes(Path(model))
        loaded, report = AutoModelForCausalLM.from_pretrained(
            model,
            revision=revision,
            gguf_file=gguf_file,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{missing[0]} is missing, {len(missing)} in all, and would be random")
        for name, weight in loaded.named_parameters():
            if not is_finite(weight):
                raise ValueError(f"{name} has infinite or NaN weights")
    if gguf_file is not None:
        # The weights are floats now, but the model is still marked as quantised.
        loaded.is_quantized = False
        del loaded.hf_quantizer, loaded.config.quantization_config
    return loaded


def load_for_inference(
    folder: Path, dtype: Precision, device: str | torch.device = "auto"
) -> PreTrainedModel:
    """`load_model` of a folder on a device, to compute in float32 or bfloat16.

    In bfloat16 it runs under `rere.engine.model.precision.arithmetic` only. Raises InputError if
    memory is full.
    """
    with out_of_memory(f"{folder} does not fit; take dtype: bfloat16 or another device"):
        model, device = load_model(folder).requires_grad_(False), choose_device(device)
        if choose_dtype(dtype, device) == "bfloat16":
            halve_linear_layers(model)
        return model.to(device)


def halve_linear_layers(model: PreTrainedModel) -> None:
    """Store the weights of linear layers in bfloat16, but those of the head and trained ones.

    Autocast would cast them for each pass, so results are the same bit for bit.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        is_inner = isinstance(module, torch.nn.Linear) and module is not head
        if is_inner and not module.weight.requires_grad:
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(weight.bfloat16(), requires_grad=False))


def restore_linear_layers(model: PreTrainedModel, folder: Path) -> None:
    """Undo `halve_linear_layers` for the layers below adapters, with the weights in `folder`."""
    layers = {name: getattr(each, "base_layer", None) for name, each in model.named_modules()}
    halved = {
        name: layer
        for name, layer in layers.items()
        if isinstance(layer, torch.nn.Linear) and layer.weight.dtype == torch.bfloat16
    }
    if not halved:
        return  # without reading the weights
    original = load_model(folder)
    for name, layer in halved.items():
        layer.float().load_state_dict(original.get_submodule(name).state_dict())


def load_adapted(folder: Path) -> PreTrainedModel:
    """Load the base of the adapters in `folder` and merge them.

    Raises InputError if either is missing or malformed, or if the base has changed.
    """
    place = find_base(folder)
    base = load_model(place)
    check_base(folder, place, base)
    with refusing(folder, "the adapters"):
        return merge_adapters(base, folder)


@contextmanager
def refusing(model: str | Path, what: str) -> Iterator[None]:
    """Raise InputError for any error of libraries that parse the files of a model."""
    try:
        yield
    except BaseException as error:
        # A panic in a Rust library is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if fault := hub_fault(str(model), error):
            raise InputError(f"{model}: {fault}") from error
        is_plain = isinstance(error, ImportError | OSError | ValueError | RuntimeError)
        reason = first_line(error) if is_plain else f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{model}: cannot load {what} ({reason}); download or train it again, or take another"
        ) from error


def hub_fault(model: str, error: BaseException | None) -> str | None:
    """Why the Hugging Face hub refused a model, and the remedy; None if another error did."""
    while error is not None:
        match error:
            case GatedRepoError():
                return (
                    "gated on the Hugging Face hub; accept its licence at "
                    f"https://huggingface.co/{model} and set HF_TOKEN in the environment to a "
                    "token of the account that did"
                )
            case RepositoryNotFoundError():
                return (
                    "not on the Hugging Face hub, or private; correct the id, or set HF_TOKEN in "
                    "the environment to a token that may read it"
                )
            case RevisionNotFoundError():
                return "has no such revision on the Hugging Face hub; correct or leave it out"
        error = error.__cause__ or error.__context__
    return None


class CheckedReader(GGUFReader):
    """Raises ValueError if a GGUF file ends before what its header announces.

    Otherwise numbers in the header decide how long reading takes, and how much memory.
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **more: Any) -> Any:
        values = super()._get(offset, dtype, count, *args, **more)
        if len(values) < count:
            raise ValueError("the file ends before what its header announces")
        return values


def check_gguf(path: Path) -> None:
    """Raise ValueError if the header of a GGUF file announces more than the file holds."""
    if not path.is_file():
        return  # a file of a Hugging Face id, or missing, which loading says
    reader = CheckedReader(path)
    for name, field in reader.fields.items():
        if name.endswith(".block_count") and field.contents() > len(reader.tensors):
            raise ValueError("its header announces more layers than the file has tensors")


def check_sizes(folder: Path) -> None:
    """Raise ValueError if config.json describes many more weights than the folder's files hold.

    Memory for them would be taken before they are found to be missing. Packed weights may be half
    as many.
    """
    shapes: list[list[int]] = []
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            shapes += [file.get_slice(name).get_shape() for name in names]
    if not shapes:
        return  # without weights that could be read, loading fails
    held = sum(map(math.prod, shapes))
    layers = count_layers(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if layers > len(shapes) or count_weights(folder) > 2 * held:
        raise ValueError(f"config.json describes more weights than the {held} that are stored")


def count_layers(config: Any) -> int:
    """Return the largest number of layers that a config.json names; a class may make a list."""
    if not isinstance(config, dict):
        return 0
    named = [value for key, value in config.items() if key in LAYERS and isinstance(value, int)]
    return max([0, *named, *map(count_layers, config.values())])


def count_weights(folder: Path) -> int:
    """Return the number of weights of a language model, without memory for them."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return count_parameters(shape_of(config))


def count_parameters(module: torch.nn.Module) -> int:
    """Return the number of weights of a model or layer, tied ones once."""
    return sum(weight.numel() for weight in module.parameters())


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a float32 model of `config` with random weights; runs no code of a checkpoint."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, trust_remote_code=False
    )
    return model


def shape_of(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a float32 model of `config` on the device `meta`, without memory."""
    with torch.device("meta"), torch.random.fork_rng([]):
        return random_model(config)


def is_finite(weight: torch.Tensor) -> bool:
    """Return whether no value is infinite or NaN, in one pass and without a copy."""
    return not weight.numel() or bool(torch.stack(torch.aminmax(weight)).isfinite().all())


def training_text(data: Path, seed: int) -> Iterator[str]:
    """Yield the text that trains a tokenizer: all titles, and prompts with responses of train."""
    titles = read_items(data)["title"].to_list()
    yield from map(response_text, titles)
    train = read_split(data, "train").select("row_id", "history", "target")
    for row_id, history, target in train.iter_rows():
        instruction = choose_instruction(seed, row_id)
        yield prompt_text(instruction, [titles[i] for i in history]) + response_text(titles[target])


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer that keeps frequent words and numbers whole."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    eos = "<|endoftext|>"
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[eos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token=eos)


def tiny_model(options: Tiny, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Return a Llama with random weights that depend on the options' seed."""
    torch.manual_seed(options.seed)
    # The plainest decoder whose tokenizer AutoTokenizer loads as it was saved; for a Qwen2 it would
    # split numbers into digits.
    config = LlamaConfig(
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
    return LlamaForCausalLM(config)
