"""Every option of every stage, declared once: typed, documented, checked.

The option models here are three things at a time: the flags of the command line (`rere.cli`
adds only the paths a stage reads and writes), the keys of a study's config, and the JSON schema
that editors use. Nothing heavy is imported: Snakemake reads this package to plan.
"""

from rere.config import (
    backbones,
    baselines,
    benchmarks,
    data,
    decoding,
    evaluation,
    options,
    run,
    study,
    training,
)

__all__ = [
    "backbones",
    "baselines",
    "benchmarks",
    "data",
    "decoding",
    "evaluation",
    "options",
    "run",
    "study",
    "training",
]
