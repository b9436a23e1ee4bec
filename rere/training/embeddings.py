"""Embeddings of item titles, for the semantic reward: one vector a title, near where texts are."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor
from transformers import AutoModel

from rere.backbones import first_line, load_tokenizer
from rere.errors import InputError
from rere.progress import progress

DIMENSIONS = 128
TITLES_A_PASS = 64


def tfidf_embeddings(titles: Sequence[str]) -> Tensor:
    """Words weighted by their rarity, in the plane of greatest variance: (I, D) f32 on the CPU.

    D is 128, or what a small catalogue has. Latent semantic analysis: Deerwester et al. 1990, by
    scikit-learn. The same titles give the same vectors; a title without a word gets 0. Raises
    InputError where no title has one.
    """
    try:
        weights = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(titles)
    except ValueError as error:
        raise InputError(f"items: their titles cannot be embedded ({error})") from error
    dimensions = min(DIMENSIONS, *weights.shape)
    vectors = TruncatedSVD(dimensions, random_state=0).fit_transform(weights)
    return torch.from_numpy(vectors).float()


@torch.inference_mode()
def sentence_embeddings(
    titles: Sequence[str], folder: Path, device: torch.device | str = "cpu"
) -> Tensor:
    """The mean of a sentence-embedding model's last states of a title: (I, D) f32 on `device`.

    `folder` holds a model and its tokenizer (sentence-transformers' own layout will do); only
    safetensors are read, and no code that comes with it is run. Raises InputError where there is
    no such model.
    """
    tokenizer = load_tokenizer(folder)
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{folder}: cannot load an embedding model ({first_line(error)})"
        ) from error
    # (The pooler comes after the states that are read.)
    if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
        raise InputError(f"{folder}: cannot load an embedding model ({missing[0]} is missing)")
    model = model.to(device).eval()
    # Titles of like length share a pass.
    order = sorted(range(len(titles)), key=lambda item: len(titles[item]))
    vectors = torch.empty(len(titles), model.config.hidden_size, device=device)
    with progress(len(titles), "embed", "title") as bar:
        for start in range(0, len(order), TITLES_A_PASS):
            items = order[start : start + TITLES_A_PASS]
            inputs = tokenizer(
                [titles[item] for item in items], padding=True, truncation=True, return_tensors="pt"
            ).to(device)
            states = model(**inputs).last_hidden_state  # (titles, T, D)
            real = inputs.attention_mask[..., None]
            vectors[items] = (states * real).sum(1) / real.sum(1)
            bar.update(len(items))
    return vectors
