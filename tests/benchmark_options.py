"""Options of the benchmarks that the tests run: few rows and small sizes."""

from rere.config.benchmarks import GpuOptions, RolloutOptions, SpeedOptions

ROLLOUTS = RolloutOptions(rows=5, group_sizes=[2, 4], beams=[12], batch_sizes=[2])
SPEED = SpeedOptions(
    beams=[2, 4],
    batch_sizes=[2],
    training_rows=0,
    catalogue_sizes=[20, 50],
    sweep_beams=[1, 3],
    prompt_lengths=[8, 16],
    reviews=[1000, 2000],
    curve_batches=1,
)
GPU = GpuOptions(
    seconds=1000.0,
    device="cpu",
    scale=16,
    titles=100,
    prompt_tokens=6,
    prompts=4,
    sft_rows=4,
    beams=[4],
    batch_sizes=[4],
    training_batch_sizes=[2],
    sft_batch_sizes=[2],
    repeats=1,
)
SPEED_ROWS = 5
"""Test rows of the model with fixed weights in the table of `speed`."""
