"""Every option of every stage, declared once: typed, documented, checked.

The models here define the flags of the command line (`rere.stages` adds the paths that a stage
reads and writes), the keys of a study's config, and the JSON schema for editors. Snakemake imports
this package to plan, so it imports nothing heavy.
"""

from rere.config import (
    backbones,
    baselines,
    benchmarks,
    claims,
    data,
    decoding,
    evaluation,
    options,
    rl,
    run,
    study,
    training,
)

__all__ = [
    "backbones",
    "baselines",
    "benchmarks",
    "claims",
    "data",
    "decoding",
    "evaluation",
    "options",
    "rl",
    "run",
    "study",
    "training",
]
