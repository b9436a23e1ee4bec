"""Language models before any training here."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rere.config.options import Options


class Tiny(Options):
    """A small Qwen2 from scratch, its tokenizer trained on one data set's training text."""

    source: Literal["tiny"] = "tiny"
    vocab_size: int = Field(4096, ge=300, description="Tokens of the byte-level BPE, at most.")
    hidden_size: int = Field(128, ge=8, description="Width of the residual stream.")
    num_layers: int = Field(2, ge=1, description="Transformer layers.")
    num_heads: int = Field(4, ge=1, description="Attention heads; divides the hidden size.")
    max_positions: int = Field(1024, ge=16, description="Longest sequence in tokens.")
    seed: int = Field(0, ge=0, description="Seed of the initial weights.")

    @model_validator(mode="after")
    def heads_divide_the_width(self):
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError("hidden_size must be a multiple of twice num_heads")
        return self


class Pretrained(Options):
    """A published model: a hub id or a local folder, stored with its tokenizer."""

    source: Literal["pretrained"] = "pretrained"
    model: str = Field(min_length=1, description="Hub id (Qwen/Qwen2-0.5B) or local folder.")
    revision: str | None = Field(None, description="Commit, branch or tag of a hub id.")
    gguf_file: str | None = Field(
        None, description="Quantised weights and tokenizer in it, stored dequantised."
    )


class TinyBackbone(Tiny):
    """`tiny` as the study names it: with the data set whose training text it reads."""

    corpus: str = Field(description="Data set whose training text trains the tokenizer.")


Backbone = Annotated[TinyBackbone | Pretrained, Field(discriminator="source")]
