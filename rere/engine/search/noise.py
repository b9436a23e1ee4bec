"""Random numbers as a function of a row's seed and a counter.

A row's random numbers thus do not depend on its batch. The generator is SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

INCREMENT = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)
BITS = 24
"""Random bits of a number: the precision of a float32."""


def row_seeds(seed: int, step: int, row_ids: Sequence[int]) -> Tensor:
    """One seed per row, (B,) i64, as a function of the run's seed, the step and the row's id."""
    digests = [
        hashlib.blake2b(f"{seed}/{step}/{row_id}".encode(), digest_size=8).digest()
        for row_id in row_ids
    ]
    return torch.tensor([int.from_bytes(digest, signed=True) for digest in digests])


def mix(seeds: Tensor, counter: Tensor) -> Tensor:
    """64 random bits for each `counter` (B, ...) i64, given one of `seeds` (B,) i64 per row."""
    bits = seeds.view(-1, *[1] * (counter.ndim - 1)) + (counter + 1) * signed(INCREMENT)
    for shift, multiplier in zip(SHIFTS, (*MULTIPLIERS, 1), strict=True):
        # Tensors have no unsigned shift; mask out the sign bits that the signed one fills in.
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * signed(multiplier)
    return bits


def signed(bits: int) -> int:
    """The 64-bit signed integer with the same bits."""
    return bits - (1 << 64) if bits >> 63 else bits


def uniform(seeds: Tensor, counter: Tensor) -> Tensor:
    """Uniform numbers between 0 and 1, both excluded, f32, shaped as `counter`."""
    top = (mix(seeds, counter) >> (64 - BITS)) & ((1 << BITS) - 1)
    return ((top.double() + 0.5) / (1 << BITS)).float().clamp(max=1 - 2**-BITS)


def gumbel(seeds: Tensor, counter: Tensor) -> Tensor:
    """Standard Gumbel numbers, f32, shaped as `counter`."""
    return -(-uniform(seeds, counter).log()).log()
