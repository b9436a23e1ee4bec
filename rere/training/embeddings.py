"""Embeddings of item titles for the semantic reward: similar titles have similar vectors."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel

from rere.backbones import load_tokenizer, refusing
from rere.errors import InputError
from rere.progress import progress

TFIDF_DIMENSIONS = 128
BATCH_SIZE = 64
"""Titles per forward pass."""


def tfidf_embeddings(titles: Sequence[str]) -> Tensor:
    """TF-IDF vectors of the titles, reduced by a truncated SVD: (I, D) f32 on the CPU.

    D is 128, or less for a small catalogue. Latent semantic analysis (Deerwester et al. 1990) by
    scikit-learn. The same titles give the same vectors; a title without a word gets 0. Raises
    InputError if no title has a word.
    """
    # Slow to import, and few runs need them.
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        weights = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(titles)
    except ValueError as error:
        raise InputError(
            f"items: titles cannot be embedded ({error}); take another reward than semantic"
        ) from error
    dimensions = min(TFIDF_DIMENSIONS, *weights.shape)
    vectors = TruncatedSVD(dimensions, random_state=0).fit_transform(weights)
    return torch.from_numpy(vectors).float()


@torch.inference_mode()
def sentence_embeddings(
    titles: Sequence[str], folder: Path, device: torch.device | str = "cpu"
) -> Tensor:
    """Mean-pooled last hidden states of a sentence-embedding model: (I, D) f32 on `device`.

    `folder` holds a model and its tokenizer, in sentence-transformers' layout or transformers'.
    Only safetensors are read, and no code in the folder is run. Raises InputError if the model
    cannot be loaded.
    """
    tokenizer = load_tokenizer(folder)
    with refusing(folder, "an embedding model"):
        model, report = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        # The pooler comes after the hidden states, so it may be missing.
        if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
            raise ValueError(f"{missing[0]} is missing")
    model = model.to(device).eval()
    # Titles of similar length share a batch, which leaves little padding.
    order = sorted(range(len(titles)), key=lambda item: len(titles[item]))
    vectors = torch.empty(len(titles), model.config.hidden_size, device=device)
    with progress(len(titles), "embed", "title") as bar:
        for start in range(0, len(order), BATCH_SIZE):
            items = order[start : start + BATCH_SIZE]
            inputs = tokenizer(
                [titles[item] for item in items], padding=True, truncation=True, return_tensors="pt"
            ).to(device)
            states = model(**inputs).last_hidden_state  # (titles, T, D)
            mask = inputs.attention_mask[..., None]
            vectors[items] = (states * mask).sum(1) / mask.sum(1)
            bar.update(len(items))
    if not vectors.isfinite().all():
        raise InputError(f"{folder}: gives embeddings that are infinite or NaN; take another model")
    return vectors
