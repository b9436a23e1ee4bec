"""What ReRe is compared with: methods without a language model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rere.config.options import Options


class Popularity(Options):
    """Rank by how often an item is a target of the training split."""

    model: Literal["popularity"] = "popularity"


class RepeatLast(Options):
    """Rank the user's own history, latest first, then by popularity."""

    model: Literal["repeat_last"] = "repeat_last"


class ItemKnn(Options):
    """Rank by cosine similarity to the items of the history (Sarwar et al., WWW 2001)."""

    model: Literal["item_knn"] = "item_knn"
    neighbours: int = Field(100, ge=1, description="Most similar items that an item votes for.")


class Sequential(Options):
    """What the sequential networks share."""

    hidden_size: int = Field(64, ge=1, description="Width of item embeddings and layers.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout probability.")
    loss: Literal["softmax", "bce"] = Field(
        "softmax",
        description="Over the whole catalogue, or binary with one sampled negative a target.",
    )
    learning_rate: float = Field(2e-3, gt=0, description="Learning rate of Adam.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty of Adam.")
    batch_size: int = Field(256, ge=1, description="Training rows a step.")
    epochs: int = Field(40, ge=1, description="Epochs at most; one predicts as many items as rows.")
    patience: int = Field(5, ge=1, description="Epochs without a better validation NDCG@10.")


class Gru4rec(Sequential):
    """Recurrent sequential recommendation (Hidasi et al., ICLR 2016)."""

    model: Literal["gru4rec"] = "gru4rec"
    num_layers: int = Field(1, ge=1, description="GRU layers.")


class Caser(Sequential):
    """Convolutional sequential recommendation (Tang & Wang, WSDM 2018)."""

    model: Literal["caser"] = "caser"
    window: int = Field(5, ge=1, description="Latest items that are read (L).")
    horizontal_filters: int = Field(16, ge=1, description="Filters of each height from 1 to L.")
    vertical_filters: int = Field(4, ge=1, description="Filters over the whole window.")


class Sasrec(Sequential):
    """Self-attentive sequential recommendation (Kang & McAuley, ICDM 2018)."""

    model: Literal["sasrec"] = "sasrec"
    num_layers: int = Field(2, ge=1, description="Self-attention blocks.")
    num_heads: int = Field(2, ge=1, description="Attention heads; divides the hidden size.")

    @model_validator(mode="after")
    def heads_divide_the_width(self):
        if self.hidden_size % self.num_heads:
            raise ValueError("hidden_size must be a multiple of num_heads")
        return self


Baseline = Annotated[
    Popularity | RepeatLast | ItemKnn | Gru4rec | Caser | Sasrec, Field(discriminator="model")
]
