"""What the search is measured with: the other side, the comparisons, and the whole stage."""

import itertools
import math

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from engine.search.test_beam import Constrained, generated, random_catalogue
from snakemake_runs import SMALL, planned, snakemake, write_raw
from study_configs import SHIPPED, changed, error
from tiny_models import CYCLE, causal_lm, unigram_lm, write_data, write_fixed_model

from rere.backbones import load_tokenizer, tiny_model
from rere.catalogue import PrefixTree
from rere.config.backbones import Tiny
from rere.config.benchmarks import Measurement
from rere.engine.search.beam import beam_search
from rere.benchmarks import timing as measure
from rere.benchmarks.speed import preprocessing
from rere.benchmarks.speed import table
from rere.benchmarks.speed.agreement import ndcg, same_ranking, search_by_decision, share_differing
from rere.benchmarks.speed.curves import PANELS, of_length, speed_curves, synthetic_titles, with_titles
from rere.benchmarks.speed.figure import draw, figure, short
from rere.benchmarks.plain.generate import TokenTree, TreeProcessor, generate
from rere.benchmarks.timing import Timed, in_fresh_process, in_turn, peak_memory, spread
from rere.benchmarks.subject import GENERATE, Side, Subject, load, peak_of_search, sample
from rere.study import load_study

VOCAB, EOS = 24, 1
CATALOGUES = st.lists(
    st.lists(st.integers(2, 6) | st.integers(2, VOCAB - 1), max_size=7).map(lambda s: [*s, EOS]),
    min_size=1,
    max_size=40,
)
MODELS = {family: causal_lm(family, VOCAB, seed=1).double() for family in ("qwen2", "gpt2")}
OPTIONS = Measurement(
    beams=[2, 4],
    batch_sizes=[2],
    training_rows=0,
    catalogue_sizes=[20, 50],
    sweep_beams=[1, 3],
    prompt_lengths=[8, 16],
    reviews=[1000, 2000],
    curve_batches=1,
)
ROWS = 5
CPU = torch.device("cpu")

# ------------------------------------------------------------------------------------- generate


@given(CATALOGUES, st.data())
@settings(max_examples=50, deadline=None)
def test_the_processor_allows_what_a_plain_one_does(sequences, data):
    tree = TokenTree.build(sequences, VOCAB)
    prefixes = sorted({tuple(s[:end]) for s in sequences for end in range(len(s))})
    length = data.draw(st.sampled_from([len(prefix) for prefix in prefixes]))
    paths = [list(prefix) for prefix in prefixes if len(prefix) == length]
    paths += [[VOCAB - 1] * length, [EOS] * length]  # on no way, and ended
    ids = torch.tensor([[9, 9, *path] for path in paths])
    scores = torch.randn(len(paths), VOCAB)
    actual = TreeProcessor(tree, 2)(ids, scores)
    assert torch.equal(actual, Constrained(sequences, 2)(ids, scores))


@pytest.mark.parametrize("num_beams", [1, 2, 16, 40])
def test_generate_is_the_plain_ones(num_beams):
    sequences, prompts = random_catalogue(30, seed=5), [[5, 9, 3, 4, 7, 11], [8], [2, 3, 22]]
    model, tree = MODELS["qwen2"], TokenTree.build(sequences, VOCAB)
    expected = generated(model, sequences, prompts, num_beams)
    found, scores = generate(model, tree, EOS, prompts, num_beams, scored=num_beams > 1)
    assert [[tuple(path) for path in row] for row in found] == [
        [path for path, _ in row] for row in expected
    ]
    for actual, row in zip(scores or (), expected, strict=num_beams > 1):
        assert actual == pytest.approx([score for _, score in row], abs=1e-5)
    plain, none = generate(model, tree, EOS, prompts, num_beams)
    assert none is None
    assert [row[: len(kept)] for row, kept in zip(plain, found, strict=True)] == found


# ------------------------------------------------------------------------------------ agreement


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ([7, 8, 9, 3], [7, 8, 9, 3], True),
        ([7, 9, 8, 3], [7, 8, 9, 3], True),  # a near tie
        ([8, 7, 9, 3], [7, 8, 9, 3], False),  # none
        ([7, 8, 3, 9], [7, 8, 9, 3], False),
        ([7, 9, 3, 8], [7, 8, 9, 3], False),  # no neighbours
        ([7, 9, 9, 3], [7, 8, 9, 3], False),
        ([7, 8, 9], [7, 8, 9, 3], False),
        ([7, 8, 9, 4], [7, 8, 9, 3], False),
        ([], [], True),
    ],
)
def test_lists_are_the_same_but_for_near_ties(ours, theirs, same):
    assert same_ranking(ours, theirs, [-1.0, -2.0, -2.00005, -2.5]) is same


def test_the_share_of_lists_that_differ():
    assert share_differing([[1, 2], [3], [4, 5], []], [[1, 2], [3, 6], [5, 4], []]) == 0.5


def test_ndcg_by_hand():
    ranked = [[5, 6, 7], [6], [*range(20)], []]
    discounts = [1 / math.log2(2 + 1), 0, 0, 0]
    assert ndcg(ranked, [6, 5, 10, 3]) == pytest.approx(sum(discounts) / 4)
    assert ndcg([[4], [3]], [4, 3]) == 1


@given(CATALOGUES, st.sampled_from([1, 2, 5, 16]), st.sampled_from(["qwen2", "gpt2"]))
@settings(max_examples=30, deadline=None)
def test_the_search_by_decision_is_the_engines(sequences, num_beams, family):
    model, prompt = MODELS[family], [5, 9, 3]
    tree = PrefixTree.build(sequences)
    leaf, score = beam_search(model, tree, [prompt], num_beams, "catalogue")
    expected = search_by_decision(model, sequences, prompt, num_beams)
    paths = [tuple(sequences[tree.leaf_items[n][0]]) for n in leaf[0].tolist() if n >= 0]
    scores = score[0, : len(paths)].tolist()
    assert scores == pytest.approx([value for _, value in expected], abs=1e-5)
    assert len(paths) == len(expected)
    assert same_ranking(paths, [path for path, _ in expected], scores)


def test_the_search_by_decision_by_hand():
    model = unigram_lm([1 / 16, 1 / 2, 1 / 4, 1 / 8, 1 / 16])
    # 2 against 3 is 2 : 1, 4 against EOS is 1 : 8, and what follows a 3 has no choice.
    sequences = [[2, 4, EOS], [2, EOS], [3, 4, 4, EOS]]
    assert search_by_decision(model, sequences, [3], 3) == [
        ((2, EOS), pytest.approx(math.log(2 / 3 * 8 / 9), abs=1e-6)),
        ((3, 4, 4, EOS), pytest.approx(math.log(1 / 3), abs=1e-6)),
        ((2, 4, EOS), pytest.approx(math.log(2 / 3 * 1 / 9), abs=1e-6)),
    ]


# ------------------------------------------------------------------------------------ measuring


@pytest.mark.parametrize("settle", [False, True])
def test_sides_take_turns_after_a_warm_up(settle):
    calls = []
    sides = {name: lambda batch, name=name: calls.append((name, batch)) or name for name in "ab"}
    timed = in_turn(sides, [[[1]], [[2], [3]]], "label", settle)
    first, second = ([(name, batch) for name in "ab"] for batch in ([[1]], [[2], [3]]))
    each = [call for call in first + second for _ in range(2)]
    assert calls == (each if settle else each[:4] + second)
    for name in "ab":
        assert timed[name].results == [name, name]
        assert 0 < timed[name].median < 1


linux = pytest.mark.skipif(
    peak_memory(int, CPU) is None, reason="this system does not tell peak memory"
)


@linux
def test_peak_memory_is_what_a_call_takes_on_top():
    held = torch.ones(30_000_000)  # 120 MB
    torch.ones(50_000_000)  # 200 MB, gone
    assert peak_memory(lambda: torch.ones(20_000_000), CPU) == pytest.approx(80, abs=8)
    assert peak_memory(int, CPU) < 8
    assert len(held)


# --------------------------------------------------------------------------------------- curves


def test_synthetic_titles_share_prefixes_as_titles_do():
    titles = synthetic_titles(20_000, 4096, seed=0)
    assert titles == synthetic_titles(20_000, 4096, seed=0)
    assert titles != synthetic_titles(20_000, 4096, seed=1)
    assert {(title[0], title[-2], title[-1]) for title in titles} == {(1, 2, 0)}
    assert {len(title) for title in titles} == set(range(6, 16))
    assert all(2 < token < 4096 for title in titles for token in title[1:-2])
    counts = torch.tensor([title[1] for title in titles]).bincount().sort(descending=True).values
    # Zipf's law over 4093 tokens: the first has 1 in 8.9, the second half of that.
    assert counts[:3].tolist() == pytest.approx([2248, 1124, 749], rel=0.1)
    tree = PrefixTree.build(titles)
    assert len(set(tree.leaf_of_item.tolist())) > 19_000


def test_all_sides_find_the_same_synthetic_titles(random_inputs):
    subject = with_titles(load("random", *random_inputs, ["float32"]), 60, seed=0)
    prompts, _ = sample(*random_inputs, ROWS, seed=0)
    found = [subject.search(side, 5, prompts) for side in (Side("vocabulary"), GENERATE)]
    ours, theirs = map(subject.leaves, found)
    assert ours == theirs
    assert [len(row) for row in ours] == [5] * 5


def test_prompts_of_a_length():
    assert of_length([1, 2, 3], 4, [[[9], [9]], [[9]]]) == [
        [[1, 2, 3, 1], [2, 3, 1, 2]],
        [[3, 1, 2, 3]],
    ]


# ------------------------------------------------------------------------------------ the stage


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model's folder and a data folder."""
    root = tmp_path_factory.mktemp("speed")
    rows = [([start, (start + 1) % 8], (start + 2) % 8) for start in range(6)]
    return write_fixed_model(root / "model"), write_data(root / "cycle", CYCLE, test=rows)


@pytest.fixture(scope="module")
def random_inputs(inputs):
    """The same with random weights."""
    model, data = inputs
    folder = model.parent / "random"
    options = Tiny(vocab_size=300, hidden_size=16, num_layers=1, num_heads=2)
    tiny_model(options, load_tokenizer(model)).save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return folder, data


def inline(function, *arguments):
    return function(*arguments)


@pytest.fixture(scope="module")
def measured(inputs, random_inputs):
    """The folder with what the stages write; fresh processes are spared."""
    (model, data), (random, _) = inputs, random_inputs
    output = model.parent / "tables" / "speed.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "in_fresh_process", inline)
        patch.setattr(preprocessing, "in_new_process", inline)
        names, rows = ["random", "fixed sft"], [2, ROWS]
        table.speed(OPTIONS, [random, model], names, rows, data, output)
        speed_curves(OPTIONS, random, data, output.with_suffix(".curves.csv"))
    return output.parent


def test_the_table_has_a_row_a_comparison(measured):
    rows = pl.read_csv(measured / "speed.csv")
    assert rows.columns == list(table.SCHEMA)
    half_tail = f"batch 2, {torch.get_num_threads()} threads, bfloat16"
    tail = f"batch 2 (theirs 2), {torch.get_num_threads()} threads, float32"
    settings = [
        f"{model}, cycle, {beams} beams, {scoring}"
        for model in ("random", "fixed sft")
        for beams in (2, 4)
        for scoring in ("vocabulary", "catalogue")
    ]
    size = rows["setting"][16].partition(", from")[0]
    assert size.startswith("2000 reviews, 600 metadata rows, ")
    threads = f"{pl.thread_pool_size()} threads"
    assert rows.select("what", "against", "setting").rows() == [
        *(("beam search", "transformers generate", f"{s}, {tail}") for s in settings),
        *(("beam search in bfloat16", "float32", f"{s}, {half_tail}") for s in settings),
        ("preprocessing", "plain Python", f"{size}, from gzip, {threads}"),
        ("preprocessing", "plain Python", f"{size}, from parsed rows, {threads}"),
        ("prefix tree", None, "50 synthetic titles"),
    ]
    searches, half, data, tree = rows[:8], rows[8:16], rows[16:18], rows[18]
    assert searches["equal"].all() and data["equal"].all()
    assert half["equal"].is_null().all()
    assert half["differing_lists"].is_between(0, 1).all()
    for part in (searches, half, data):
        ratio = part["theirs_seconds"] / part["ours_seconds"]
        assert part["ratio"].to_list() == pytest.approx(ratio.to_list(), rel=0.01)
    for part in (searches, half):
        for side in ("ours", "theirs"):
            assert part[f"ndcg@10_{side}"].is_between(0, 1).all()
    exact = searches.filter(pl.col("setting").str.contains("vocabulary"))
    assert exact["ndcg@10_ours"].equals(exact["ndcg@10_theirs"])
    is_catalogue = searches["setting"].str.contains("catalogue")
    assert searches["differing_lists"].is_not_null().equals(is_catalogue)
    assert tree["ours_seconds"][0] > 0
    assert tree["theirs_seconds"].is_null().all()


def test_the_curves_have_each_point_of_each_panel(measured):
    curves = pl.read_csv(measured / "speed.curves.csv")
    sizes = zip(PANELS, ([20, 50], [1, 3], [8, 16]), strict=True)
    whats = ("catalogue", "vocabulary", "generate")
    points = [(x, panel, what) for panel, xs in sizes for x in xs for what in whats]
    points += [
        (x, "reviews", what) for x in (1000, 2000) for what in ("preprocessing", "plain Python")
    ]
    assert curves.select("x", "panel", "what").rows() == points
    assert (curves["seconds"] > 0).all()
    assert curves["peak_mb"].is_null().to_list() == [panel != "reviews" for _, panel, _ in points]


def test_the_markdown_is_regular_and_says_what_it_was_measured_with(measured):
    text = (measured / "speed.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 19
    assert len({line.count("|") for line in lines}) == 1
    assert len(set(map(len, lines))) == 1
    assert f"torch {torch.__version__}" in text


def test_a_curve_ends_where_it_takes_too_long(inputs, tmp_path):
    options = OPTIONS.model_copy(update={"curve_seconds": 1e-9, "reviews": []})
    speed_curves(options, *inputs, tmp_path / "speed.curves.csv")
    curves = pl.read_csv(tmp_path / "speed.curves.csv")
    assert curves["x"].to_list() == [20] * 3 + [1] * 3 + [8] * 3


def test_a_list_that_is_not_generates_is_told(inputs):
    subject = load("fixed", *inputs, ["float32"])
    prompts, _ = sample(*inputs, ROWS, seed=0)
    theirs = subject.leaves(subject.search(GENERATE, 4, prompts))
    wrong = [theirs[0][::-1], *theirs[1:]]
    for ours, equal in ((theirs, True), (wrong, False)):
        sides = [table.Measured(2, None, lists, None, None) for lists in (ours, theirs)]
        assert table.equals_generate(subject, 4, prompts, *sides) is equal
    ours = subject.leaves(subject.search(Side("catalogue"), 4, prompts))
    for lists, equal in ((ours, True), ([row[::-1] for row in ours], False)):
        side = table.Measured(2, None, lists, None, None)
        assert table.equals_plain(subject, 4, prompts, side) is equal


def test_batches_are_searched_one_after_the_other():
    calls = []
    found = table.in_batches(lambda p: calls.append(p) or [x * 2 for x in p], 2, [1, 2, 3, 4, 5])
    assert found == [2, 4, 6, 8, 10]
    assert calls == [[1, 2], [3, 4], [5]]


@linux
def test_memory_is_measured_in_a_process_of_its_own(inputs):
    peak = in_fresh_process(peak_of_search, *inputs, GENERATE, 4, [[5, 6, 7, 8]] * 2)
    assert 0 <= peak < 50


def test_the_figure_is_written_in_each_format_and_the_same_twice(measured, tmp_path):
    curves = pl.read_csv(measured / "speed.curves.csv")
    # One curve that ended, one that never was; in a process that is not new, no memory to tell.
    curves = curves.filter((pl.col("what") != "generate") | (pl.col("x") == 20))
    curves = curves.with_columns(peak_mb=pl.col("peak_mb").abs() + 1)
    curves.write_csv(tmp_path / "speed.curves.csv")
    searches = curves.filter(pl.col("panel") != "reviews")
    assert [len(draw(points).get_axes()) for points in (curves, searches)] == [5, 3]
    for name in ("first", "second"):
        outputs = [tmp_path / name / f"speed.{suffix}" for suffix in ("pdf", "png")]
        figure(tmp_path / "speed.curves.csv", outputs)
    for name, magic in {"speed.pdf": b"%PDF", "speed.png": b"\x89PNG"}.items():
        content = (tmp_path / "first" / name).read_bytes()
        assert content.startswith(magic)
        assert content == (tmp_path / "second" / name).read_bytes()
    numbers = (1, 200, 1000, 1500, 10_000, 1_000_000)
    assert [*map(short, numbers)] == ["1", "200", "1k", "1500", "10k", "1M"]


# ------------------------------------------------------------------------------------ the study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"speed__speed__dataset": "ml100k"},
            "speed.speed.dataset: there is no ml100k; did you mean ml-100k?",
        ),
        (
            {"speed__speed__models": [{"backbone": "tini"}]},
            "speed.speed.models.backbone: there is no tini; did you mean tiny?",
        ),
        (
            {"speed__speed__models": [{"backbone": "tiny", "method": "stf"}]},
            "speed.speed.models.method: there is no stf; did you mean sft?",
        ),
        (
            {"speed__speed__models": [{"backbone": "tiny", "method": "sasrec"}]},
            "speed.speed.models.method: sasrec is a baseline, which trains no model to measure",
        ),
        ({"speed__speed__beem": [2]}, "speed.speed.beem: unknown key; did you mean beams?"),
        ({"speed__speed__beams": []}, "speed.speed.beams: empty; give at least one"),
        ({"speed__speed__models": []}, "speed.speed.models: empty; give at least one"),
        (
            {"speed__speed__beams": [1]},
            "speed.speed.beams: input should be greater than or equal to 2, not 1",
        ),
        (
            {"tables__speed": SHIPPED["tables"]["main"]},
            "tables.speed: speed has a table of that name; choose another name",
        ),
    ],
)
def test_one_line_names_the_key_and_the_remedy(changes, message):
    assert error(changed(**changes)) == message


def test_the_models_that_are_measured():
    speed = load_study(SHIPPED).speed["speed"]
    assert [model.name for model in speed.models] == ["wide", "tiny sft"]
    assert speed.folders == [
        "results/backbones/wide",
        "results/runs/ml-100k/tiny/sft/seed0/model",
    ]


TARGETS = ["results/tables/speed.csv", "results/figures/speed.pdf"]


@pytest.mark.parametrize(
    ("seconds", "best", "tried"),
    [((3, 2, 1), 8, [2, 3, 8]), ((2, 1, 3), 3, [2, 3, 8]), ((1, 1, 0), 2, [2, 3])],
)
def test_batches_are_of_the_size_that_suits_a_side(monkeypatch, seconds, best, tried):
    def timed(sides, batches, label):
        assert list(itertools.chain.from_iterable(batches)) == prompts[6:14]
        sizes.append(len(batches[0]))
        return {side: Timed([seconds[len(sizes) - 1]], []) for side in sides}

    monkeypatch.setattr(measure, "in_turn", timed)
    options = OPTIONS.model_copy(update={"batch_sizes": [2, 3, 8]})
    prompts = [[n] for n in range(20)]
    subject = Subject("none", {}, [], EOS)
    for side in (GENERATE, Side("catalogue", "bfloat16")):
        sizes = []
        assert table.best_batch_size(options, subject, side, 4, prompts) == best
        assert sizes == tried


def test_the_graph_measures_when_asked(tmp_path):
    write_raw(tmp_path / "raw")
    assert planned(tmp_path, SMALL, *TARGETS) == {
        "preprocess": 1,
        "backbone": 1,
        "sft": 1,
        "speed": 1,
        "speed_curves": 1,
        "speed_figure": 1,
    }
    assert not {"speed", "speed_curves", "speed_figure"} & planned(tmp_path, SMALL).keys()


def test_a_table_that_speed_does_not_name_is_none(tmp_path):
    write_raw(tmp_path / "raw")
    done = snakemake(tmp_path, SMALL, "--dry-run", "results/tables/sped.csv")
    assert done.returncode != 0
    assert "MissingRuleException" in done.stdout


def test_a_few_stand_for_equal_parts():
    assert spread(range(48), 2) == [12, 36]
    assert spread(range(10), 3) == [1, 5, 8]
    assert spread(range(2), 5) == [0, 1]
