"""Methods without a language model, which ReRe is compared with."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rere.config.options import MAX_EPOCHS, Options


class Deterministic(Options):
    """A baseline that uses no random numbers: one run stands for all seeds."""


class Popularity(Deterministic):
    """Rank items by how often they are targets in the training split."""

    model: Literal["popularity"] = "popularity"


class RepeatLast(Deterministic):
    """Rank the items of the history, latest first, then the others by popularity."""

    model: Literal["repeat_last"] = "repeat_last"


class ItemKnn(Deterministic):
    """Rank items by cosine similarity to those of the history (Sarwar et al., WWW 2001)."""

    model: Literal["item_knn"] = "item_knn"
    neighbours: int = Field(
        100,
        ge=1,
        description="Number of most similar items that each item of the history votes for.",
    )


class Sequential(Options):
    """Options that the sequential networks share."""

    hidden_size: int = Field(64, ge=1, description="Width of item embeddings and layers.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout probability.")
    loss: Literal["softmax", "bce"] = Field(
        "softmax",
        description="softmax: cross-entropy over the whole catalogue. bce: binary cross-entropy "
        "with one sampled negative per target, as published.",
    )
    learning_rate: float = Field(2e-3, gt=0, description="Learning rate of Adam.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty of Adam.")
    batch_size: int = Field(256, ge=1, description="Training rows per step.")
    epochs: int = Field(
        40,
        ge=1,
        le=MAX_EPOCHS,
        description="Epochs, fewer if `patience` ends the run. An epoch predicts as many items as "
        "there are rows.",
    )
    patience: int = Field(
        5,
        ge=1,
        description="Stop after this many epochs in a row without a better validation NDCG@10.",
    )


class Gru4rec(Sequential):
    """Train a recurrent network and rank with it (Hidasi et al., ICLR 2016)."""

    model: Literal["gru4rec"] = "gru4rec"
    num_layers: int = Field(1, ge=1, description="Number of GRU layers.")


class Caser(Sequential):
    """Train a convolutional network and rank with it (Tang & Wang, WSDM 2018)."""

    model: Literal["caser"] = "caser"
    window: int = Field(5, ge=1, description="Latest items of the history that are read (L).")
    horizontal_filters: int = Field(
        16, ge=1, description="Convolution filters of each height from 1 to L."
    )
    vertical_filters: int = Field(4, ge=1, description="Convolution filters over the whole window.")


class Sasrec(Sequential):
    """Train a self-attentive network and rank with it (Kang & McAuley, ICDM 2018)."""

    model: Literal["sasrec"] = "sasrec"
    num_layers: int = Field(2, ge=1, description="Number of self-attention blocks.")
    num_heads: int = Field(
        2, ge=1, description="Attention heads; their number must divide `hidden_size`."
    )

    @model_validator(mode="after")
    def check_num_heads(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError("hidden_size must be a multiple of num_heads")
        return self


Baseline = Annotated[
    Popularity | RepeatLast | ItemKnn | Gru4rec | Caser | Sasrec, Field(discriminator="model")
]
