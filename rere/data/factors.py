"""The factors files: scores of a trained sequential baseline, for other methods to use.

factors.safetensors         row_id i64 (rows of the training split, ascending),
                            state f32 (rows, D), item f32 (items, D): for the collaborative reward
factors.test.safetensors    the same for the ranked test rows: for D3

The model's logit of an item after a row's history is the dot product of state and item, so readers
need no model. R rows, I items.
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
"""File names in the run folder of a baseline."""


@dataclass(frozen=True)
class Factors:
    """States of a split's histories, and vectors of the items."""

    row_id: Tensor  # (R,) i64, ascending
    state: Tensor  # (R, D) f32
    item: Tensor  # (I, D) f32

    def to(self, device: torch.device | str) -> Self:
        """Return the factors on `device`."""
        return type(self)(**{name: value.to(device) for name, value in vars(self).items()})

    def states(self, row_id: Tensor) -> Tensor:
        """Return the states of rows: (B,) i64 -> (B, D)."""
        return self.state[torch.searchsorted(self.row_id, row_id)]

    def save(self, path: Path) -> None:
        """Write the factors to a safetensors file."""
        with replacing(path) as temporary:
            save_file({name: value.contiguous() for name, value in vars(self).items()}, temporary)

    @classmethod
    def load(cls, path: Path, row_ids: np.ndarray, num_items: int) -> Self:
        """Read factors for the rows `row_ids` and a catalogue of `num_items`.

        Raises InputError if the file is malformed, or was made from other data.
        """
        try:
            factors = cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise InputError(
                f"{path}: not the factors of a baseline ({error}); train it again"
            ) from error
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
            raise InputError(
                f"{path}: made from another data set or split; train the baseline again"
            )
        return factors
