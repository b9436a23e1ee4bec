"""The factors contract: what a trained sequential baseline leaves for others that ask it.

factors.safetensors         row_id i64 (rows of the training split, ascending),
                            state f32 (rows, D), item f32 (items, D): for the collaborative reward
factors.test.safetensors    the same of the test rows that it ranks: for D3

The model's logit of an item after a row's history is the product of the two, so that whoever reads
the file needs no model. R rows, I items.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rere.errors import InputError
from rere.files import replacing

FACTORS, TEST_FACTORS = "factors.safetensors", "factors.test.safetensors"
"""The files' names in the folder of a baseline's run."""


@dataclass(frozen=True)
class Factors:
    """States of a split's histories, and the items' vectors that they multiply."""

    row_id: Tensor  # (R,) i64, ascending
    state: Tensor  # (R, D) f32
    item: Tensor  # (I, D) f32

    def to(self, device: torch.device | str) -> Self:
        """The same factors with their tensors on `device`."""
        return type(self)(**{name: value.to(device) for name, value in vars(self).items()})

    def states(self, row_id: Tensor) -> Tensor:
        """The states of rows: (B,) i64 -> (B, D)."""
        return self.state[torch.searchsorted(self.row_id, row_id)]

    def save(self, path: Path) -> None:
        """Write the factors to a safetensors file."""
        with replacing(path) as temporary:
            save_file({name: value.contiguous() for name, value in vars(self).items()}, temporary)

    @classmethod
    def load(cls, path: Path, row_ids: np.ndarray, num_items: int) -> Self:
        """The factors in a file, for the rows `row_ids` of a catalogue of `num_items`.

        Raises InputError if it is malformed, or was made of other data.
        """
        try:
            factors = cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise InputError(f"{path}: not the factors of a baseline ({error})") from error
        row_id, state, item = vars(factors).values()
        if not (
            [row_id.dtype, state.dtype, item.dtype] == [torch.int64, torch.float32, torch.float32]
            and [row_id.ndim, state.ndim, item.ndim] == [1, 2, 2]
            and len(row_id) == len(state)
            and state.shape[1] == item.shape[1]
            and state.isfinite().all()
            and item.isfinite().all()
        ):
            raise InputError(f"{path}: not the factors of a baseline; train it again")
        if len(item) != num_items or not row_id.equal(torch.from_numpy(np.sort(row_ids))):
            raise InputError(f"{path}: made of another data set or split; train the baseline again")
        return factors
