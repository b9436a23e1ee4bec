"""Own rewards with faults, and right ones of unusual kinds."""

import functools
import os
import sys

import torch


def missing_name(groups):
    return groups.item.float() * factor  # noqa: F821


def deeper(groups):
    return helper(groups)


def helper(groups):
    raise RuntimeError("first line\nsecond line")


def in_a_library(groups):
    return torch.nn.functional.cross_entropy(groups.item, "labels")


def leaves(groups):
    sys.exit(3)


def silent(groups):
    raise ValueError


def takes_memory(groups):
    return torch.empty(1 << 50)


def huge(groups):
    return torch.full(groups.item.shape, 1e300, dtype=torch.float64)


def elsewhere(groups):
    return torch.zeros(groups.item.shape, device="meta")


def equal(groups):
    return torch.full(groups.item.shape, 0.25)


def log_prob(groups):
    return groups.log_prob


def no_argument():
    pass


def two_arguments(groups, other):
    pass


def keyword_only(*, groups):
    pass


def with_default(groups, scale=2.0):
    return torch.full(groups.item.shape, scale)


class Scale:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, groups):
        return torch.full(groups.item.shape, self.scale)

    def method(self, groups):
        return self(groups)


class Layer(torch.nn.Module):
    def forward(self, groups):
        return torch.full(groups.item.shape, 2.0)


scaled, method, layer = Scale(2.0), Scale(2.0).method, Layer()
partial = functools.partial(with_default, scale=2.0)
system = functools.partial(os.system)
constant = 3
