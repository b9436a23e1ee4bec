"""Random numbers that are functions of a row's seed and a counter.

So what a row draws depends on neither the batch it is in, nor its place there, nor the number of
processes, and no row waits for a generator. The mixing is SplitMix64's (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

INCREMENT = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)
BITS = 24
"""What a float32 holds."""


def row_seeds(seed: int, step: int, row_ids: Sequence[int]) -> Tensor:
    """One seed a row, (B,) i64, a function of the run's seed, the step and the row's id."""
    digests = [
        hashlib.blake2b(f"{seed}/{step}/{row_id}".encode(), digest_size=8).digest()
        for row_id in row_ids
    ]
    return torch.tensor([int.from_bytes(digest, signed=True) for digest in digests])


def mix(seeds: Tensor, counter: Tensor) -> Tensor:
    """64 random bits for each counter (B, ...) i64 of the rows' `seeds` (B,) i64."""
    bits = seeds.view(-1, *[1] * (counter.ndim - 1)) + (counter + 1) * signed(INCREMENT)
    for shift, multiplier in zip(SHIFTS, (*MULTIPLIERS, 1), strict=True):
        # Tensors have no unsigned shift: what the signed one fills in is masked out.
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * signed(multiplier)
    return bits


def signed(bits: int) -> int:
    """The signed number of 64 bits, which wraps around as they do."""
    return bits - (1 << 64) if bits >> 63 else bits


def uniform(seeds: Tensor, counter: Tensor) -> Tensor:
    """Numbers between 0 and 1, neither of them included, f32, shaped as `counter`."""
    top = (mix(seeds, counter) >> (64 - BITS)) & ((1 << BITS) - 1)
    return ((top.double() + 0.5) / (1 << BITS)).float().clamp(max=1 - 2**-BITS)


def gumbel(seeds: Tensor, counter: Tensor) -> Tensor:
    """Numbers of the standard Gumbel distribution, f32, shaped as `counter`."""
    return -(-uniform(seeds, counter).log()).log()
