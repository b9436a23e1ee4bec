"""Load the model that training starts from; save the trained one."""

from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rere.adapters import (
    AdapterBase,
    Adapters,
    hash_weights,
    is_adapters,
    load_adapters,
    read_adapter_base,
    save_adapters,
)
from rere.backbones import load_model, load_tokenizer, save_model
from rere.catalogue import CATALOGUE, Catalogue
from rere.config.run import ADAPTED_FILES, CARD, TRAINED_FILES, stored_files
from rere.config.training import Training
from rere.engine.model.decoder import supports_shared_prompt
from rere.engine.model.layers import decoder_layers
from rere.errors import InputError
from rere.files import replacing
from rere.model_card import read_base
from rere.tokenization import PromptEncoder

Model: TypeAlias = PreTrainedModel | PeftModel


class Start(NamedTuple):
    """What adapters are saved without: the base, and earlier adapters that training began with."""

    base: AdapterBase
    earlier: Adapters | None

    @property
    def name(self) -> str:
        """The base's id on the hub, or its folder; of an absolute path only the last part."""
        path = Path(self.base.model)
        return self.base.hub or (path.name if path.is_absolute() else str(path))


def find_start(init: Path, model: Model) -> Start:
    """What the adapters of `model` are saved without, which was loaded from the folder `init`."""
    if is_adapters(init):
        return Start(read_adapter_base(init), load_adapters(init))
    is_trained = (init / CATALOGUE).exists()  # its card has the id of the published base, too
    hub = None if is_trained else read_base(init).model
    return Start(AdapterBase(model=str(init), hub=hub, sha256=hash_weights(model)), None)


def load_trainable(folder: Path, options: Training) -> tuple[PreTrainedTokenizerBase, Model]:
    """The tokenizer and the model in `folder`, with LoRA adapters if the options ask for them.

    Raises InputError for an architecture whose candidates cannot share their prompt.
    """
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    if not supports_shared_prompt(model):
        raise InputError(
            f"{folder}: {type(model).__name__} cannot be trained, since its attention does not "
            "follow a mask by position; take another architecture"
        )
    return tokenizer, prepare(model, options)


def prepare(model: PreTrainedModel, options: Training) -> Model:
    """The model with checkpointed layers and LoRA adapters, if the options ask for them."""
    if options.gradient_checkpointing:
        checkpoint_layers(model)
    if options.lora_rank is None:
        return model
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        target_modules="all-linear",
    )
    return get_peft_model(model, config)


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Make layers keep only their inputs for the backward pass and recompute the rest.

    transformers' own option needs training mode; RL trains in eval mode. The last layer is left
    out: it is small (`rere.engine.model.last_layer`), and its backward pass comes first.
    """
    for layer in decoder_layers(model)[:-1]:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def save_trained(
    model: Model,
    encoder: PromptEncoder,
    catalogue: Catalogue,
    card: str,
    output: Path,
    start: Start | None,
) -> None:
    """Write all that recommending needs to `output`: weights, tokenizer, catalogue; and a card.

    Adapters are merged into the weights, or with a `start` saved without it. But for the card, the
    files are safetensors and JSON.
    """
    if start is None and isinstance(model, PeftModel):
        model = model.merge_and_unload()
    with replacing(output) as folder:
        if start is None:
            save_model(model, encoder.tokenizer, folder)
        else:
            assert isinstance(model, PeftModel)
            folder.mkdir()
            save_adapters(model, start.base, start.earlier, folder, output)
            encoder.tokenizer.save_pretrained(folder, save_jinja_files=False)
        # The model of an earlier run, perhaps of another `save`. Snakemake has deleted what is to
        # be written, the catalogue among it.
        if any((output / name).exists() for name in (CATALOGUE, CARD)):
            kept = stored_files(start is not None)
            for name in {*TRAINED_FILES, *ADAPTED_FILES}.difference(kept):
                (output / name).unlink(missing_ok=True)
        catalogue.save(folder / CATALOGUE)
        (folder / CARD).write_text(card, encoding="utf-8")
