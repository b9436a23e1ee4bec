"""Training curves of small logs."""

from pathlib import Path

import pytest
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from reported_runs import training_log, write_log

from rere.errors import InputError
from rere.reporting.curves import FIELDS, curves, draw_curves, label_runs, read_log, read_logs
from rere.reporting.figures import STYLE


def test_read_log_gives_a_row_per_step_with_its_validation(logged_runs):
    points = read_log(logged_runs[0] / "log.jsonl")
    assert points.columns == ["step", "seconds", *FIELDS.values()]
    assert points["step"].to_list() == [1, 2, 3, 4]
    assert points["seconds"].to_list() == [2, 4, 6, 8]
    assert points["valid NDCG@10"].to_list() == [None, 0.02, None, 0.04]
    assert points["reward"].to_list() == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_labels_have_the_names_that_differ():
    def label(*names):
        return label_runs([Path("results/runs", *name, "seed0") for name in names])

    assert label(("d", "tiny", "a"), ("d", "tiny", "b")) == ["a", "b"]
    assert label(("d", "tiny", "a"), ("d", "large", "a")) == ["tiny", "large"]
    assert label(("d", "tiny", "a"), ("e", "tiny", "b")) == ["d, a", "e, b"]
    assert label(("d", "tiny", "a"), ("d", "tiny", "a")) == ["a", "a"]


def drawn_lines(axes) -> list[list]:
    """The points of each line; seaborn's entries of legends have none."""
    return [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata())]


def test_panels_have_a_line_per_method(logged_runs):
    axes = draw_curves(read_logs(logged_runs)).axes
    assert [panel.get_ylabel() for panel in axes[::2]] == list(FIELDS.values())
    assert [panel.get_xlabel() for panel in axes[-2:]] == ["step", "seconds"]
    ndcg, reward, kl = axes[0], axes[2], axes[8]
    assert drawn_lines(ndcg) == [[[2, 0.02], [4, 0.04]]] * 2
    assert drawn_lines(axes[1])[0] == [[4, 0.02], [8, 0.04]]  # by seconds
    assert drawn_lines(reward)[0] == [[step, pytest.approx(0.1 * step)] for step in (1, 2, 3, 4)]
    assert [len(line) for line in drawn_lines(kl)] == [4]


def test_lines_are_means_over_seeds_and_validations_have_a_band(logged_runs):
    slow = [line | {"seconds": 3 * line["seconds"]} if "seconds" in line else line
            for line in training_log()]  # fmt: skip
    for line in slow:
        line |= {name: 3 * line[name] for name in ("reward", "eval_ndcg@10") if name in line}
    write_log(logged_runs[1], slow)
    axes = draw_curves(read_logs(logged_runs)).axes
    ndcg, ndcg_by_seconds, reward = axes[0], axes[1], axes[2]
    assert reward.lines[0].get_ydata().tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert drawn_lines(ndcg_by_seconds)[0] == [[8, 0.04], [16, 0.08]]
    band = ndcg.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in band.tolist()} == {
        *((2.0, 0.02), (2.0, 0.06), (4.0, 0.04), (4.0, 0.12))
    }
    assert not reward.collections


def test_the_legend_stays_inside_the_figure(tmp_path):
    methods = [f"released-objective=released_sequence_mean_{number}" for number in range(9)]
    runs = [write_log(tmp_path / "d" / "b" / m / "seed0", training_log()) for m in methods]
    with rc_context(fname=STYLE):
        figure = draw_curves(read_logs(runs))
        figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    # The figure has grown with the legend: panels are as high as those of a short one.
    with rc_context(fname=STYLE):
        short = draw_curves(read_logs(runs[:1]))
        short.draw_without_rendering()
    heights = [each.axes[0].get_window_extent().height for each in (figure, short)]
    assert heights[0] > 0.8 * heights[1]


def test_only_values_of_steps_are_smoothed(tmp_path):
    lines = training_log(36)
    for line in lines:
        line |= {"reward": float(line["step"] % 3)} if "reward" in line else {}
    points = read_log(write_log(tmp_path / "m", lines) / "log.jsonl")
    # A window of 36 / 12 = 3 steps: any three in a row are 0, 1 and 2.
    assert points["reward"][1:-1].to_list() == pytest.approx([1.0] * 34)
    validations = points["valid NDCG@10"].drop_nulls().to_list()
    assert validations == pytest.approx([0.01 * step for step in range(2, 37, 2)])


def test_methods_differ_without_colour_and_the_first_colours_in_grey(tmp_path):
    runs = [write_log(tmp_path / "d" / "b" / f"m{n}" / "seed0", training_log()) for n in range(16)]
    with rc_context(fname=STYLE):
        lines = draw_curves(read_logs(runs)).axes[2].lines[:16]
    # matplotlib has no public reader of dashes.
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == 16
    colours = [to_rgb(line.get_color()) for line in lines[:4]]
    grey = sorted(0.299 * r + 0.587 * g + 0.114 * b for r, g, b in colours)
    assert grey[1] - grey[0] > 0.3
    assert grey[2] - grey[1] > 0.2


def test_fields_that_no_log_has_get_no_panel(logged_runs):
    points = read_logs(logged_runs[2:])
    assert points.columns == ["step", "seconds", *list(FIELDS.values())[:-1], "method"]
    assert len(draw_curves(points).axes) == 2 * 4


def test_logs_without_seconds_are_drawn_by_step_only(logged_runs):
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in training_log()]
    write_log(logged_runs[0], lines)
    assert len(draw_curves(read_logs(logged_runs[:1])).axes) == 4


def test_the_figure_is_written_in_each_format_with_the_same_bytes_each_time(logged_runs, tmp_path):
    for name in ("first", "second"):
        curves(logged_runs, [tmp_path / name / f"main.{suffix}" for suffix in ("pdf", "png")])
    for name, magic in {"main.pdf": b"%PDF", "main.png": b"\x89PNG"}.items():
        content = (tmp_path / "first" / name).read_bytes()
        assert content.startswith(magic)
        assert content == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"step": "x"}'])
def test_a_malformed_log_is_named(logged_runs, tmp_path, text):
    (logged_runs[1] / "log.jsonl").write_text(text)
    with pytest.raises(
        InputError, match=r"seed1/log\.jsonl: (not a readable log|has no lines)"
    ) as error:
        curves(logged_runs, [tmp_path / "c.png"])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "c.png").exists()


def test_a_missing_log_and_a_log_of_sft_are_refused(tmp_path):
    run = tmp_path / "d" / "b" / "sft" / "seed0"
    with pytest.raises(InputError, match=r"log\.jsonl: not a readable log"):
        curves([run], [tmp_path / "c.png"])
    write_log(run, [{"step": 1, "loss": 0.5}, {"step": 1, "eval_loss": 0.4}])
    with pytest.raises(InputError, match=r"has none of eval_ndcg@10, .*; train with rl"):
        curves([run], [tmp_path / "c.png"])
