"""The language models that training starts from."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rere.config.options import Options, Precision, same
from rere.config.training import Training


class Tiny(Options):
    """Make a small Llama with random weights and a tokenizer trained on a data set's text."""

    source: Literal["tiny"] = "tiny"
    vocab_size: int = Field(
        4096, ge=300, description="Largest vocabulary of the byte-level BPE tokenizer, in tokens."
    )
    hidden_size: int = Field(128, ge=8, description="Width of the residual stream.")
    num_layers: int = Field(2, ge=1, description="Number of transformer layers.")
    num_heads: int = Field(
        4, ge=1, description="Attention heads; twice their number must divide `hidden_size`."
    )
    max_positions: int = Field(1024, ge=16, description="Longest sequence, in tokens.")
    seed: int = Field(0, ge=0, description="Seed of the initial weights.")

    @model_validator(mode="after")
    def check_num_heads(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError("hidden_size must be a multiple of twice num_heads")
        return self


class Pretrained(Options):
    """Store a published model and its tokenizer. Code that comes with a model is never run."""

    source: Literal["pretrained"] = "pretrained"
    model: str = Field(
        min_length=1, description="Hugging Face id, such as Qwen/Qwen2-0.5B, or local folder."
    )
    revision: str | None = Field(
        None,
        description="Commit, branch or tag of a Hugging Face id. None: the commit that was fetched "
        "first, which a study records in config/backbones.lock.yaml.",
    )
    gguf_file: str | None = Field(
        None, description="GGUF file of `model` with weights and tokenizer; stored dequantised."
    )


class BackboneTraining(Options):
    """Options of training with a backbone, in the place of those of methods."""

    optimizer: Literal["adamw", "adafactor"] = same(Training, "optimizer")
    dtype: Precision = same(Training, "dtype")
    rows_per_pass: int = same(Training, "rows_per_pass")
    lora_rank: int | None = same(Training, "lora_rank")
    lora_alpha: float = same(Training, "lora_alpha")
    gradient_checkpointing: bool = same(Training, "gradient_checkpointing")
    sharded: bool = same(Training, "sharded")


class StudyBackbone(Options):
    """A backbone in a study: with what its size asks of training."""

    training: BackboneTraining = Field(
        BackboneTraining(),
        description="Options of `sft`, `preference` and `rl` with this backbone, in the place of "
        "those of methods. One that is not given is the method's.",
    )


class PretrainedBackbone(StudyBackbone, Pretrained):
    """`Pretrained` in a study."""


class TinyBackbone(StudyBackbone, Tiny):
    """`Tiny` in a study: with the data set whose text trains the tokenizer."""

    corpus: str = Field(
        description="Data set whose titles and training prompts train the tokenizer."
    )


Backbone = Annotated[TinyBackbone | PretrainedBackbone, Field(discriminator="source")]
