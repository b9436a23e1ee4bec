"""The model that training starts from, and the one that it leaves behind."""

from functools import partial
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from rere.backbones import load_model, load_tokenizer
from rere.catalogue import CATALOGUE, Catalogue
from rere.config.training import Training
from rere.engine.model.decoder import supports_shared_prompt
from rere.errors import InputError
from rere.files import replacing
from rere.tokenization import PromptEncoder

Model = PreTrainedModel | PeftModel


def load(folder: Path, options: Training) -> tuple[PreTrainedTokenizerBase, Model]:
    """The tokenizer and model that training starts from, the latter with adapters if asked for.

    Raises InputError for an architecture whose candidates cannot share their prompt.
    """
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    if not supports_shared_prompt(model):
        raise InputError(
            f"{folder}: {type(model).__name__} cannot be trained, since its attention does not "
            "follow a mask by position; take another architecture"
        )
    if options.gradient_checkpointing:
        checkpoint_layers(model)
    if options.lora_rank is not None:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=options.lora_rank,
            lora_alpha=options.lora_alpha,
            target_modules="all-linear",
        )
        model = get_peft_model(model, config)
    return tokenizer, model


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Have layers keep their inputs alone for the backward pass, and compute the rest again.

    transformers' own switch works in training mode only, and RL trains in eval mode. The last layer
    would be computed again as soon as it is done, and is small (`rere.engine.model.last_layer`).
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers[:-1]:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def save(model: Model, encoder: PromptEncoder, catalogue: Catalogue, output: Path) -> None:
    """Write a model folder: safetensors and JSON only, adapters merged into the weights.

    It is all that recommending takes: weights, tokenizer and catalogue.
    """
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    with replacing(output) as folder:
        model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        catalogue.save(folder / CATALOGUE)
