"""The tokenizer reads every caption in few tokens and any other text at all."""

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from deploy.demo_model.captions import caption
from deploy.demo_model.preset import TOKENS
from deploy.demo_model.scenes import sample_scene
from deploy.demo_model.text import make_tokenizer, tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_a_word_of_the_captions_is_one_token(tokenizer: CLIPTokenizer) -> None:
    words = tokenizer.tokenize("a red house, pine trees at sunset")
    assert words == [
        f"{w}</w>" for w in ("a", "red", "house", ",", "pine", "trees", "at", "sunset")
    ]


def test_captions_fit(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(0)
    texts = [caption(sample_scene(rng), rng) for _ in range(500)]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= TOKENS


def test_unknown_words_are_spelt_out(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("Zürich 2024 🚀").input_ids
    assert tokenizer.eos_token_id not in ids[1:-1]


def test_ids_are_padded_and_cut(tokenizer: CLIPTokenizer) -> None:
    ids = tokens(tokenizer, ["", "hills " * 100])
    assert ids.shape == (2, TOKENS)
    assert ids[:, 0].eq(tokenizer.bos_token_id).all()
    assert ids[:, -1].eq(tokenizer.eos_token_id).all()


def test_it_comes_back_from_disk_the_same(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    text = "violet hills, a starry sky & more"
    assert CLIPTokenizer.from_pretrained(tmp_path)(text) == tokenizer(text)
