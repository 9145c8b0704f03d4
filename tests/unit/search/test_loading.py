"""A model that is loaded beside the work, and what those who need it are told."""

import threading
from pathlib import Path

import pytest
import torch
from pydantic import SecretStr
from safetensors.torch import load_file

from shared.core.settings import Settings
from worker.search.embedders import Embedder, ImageEmbedder, Loading, ModelNotLoaded


def test_who_needs_it_waits_for_it() -> None:
    go_on = threading.Event()

    def load() -> str:
        go_on.wait(10)
        return "model"

    loading = Loading("toy", load)
    with pytest.raises(ModelNotLoaded, match="still loading"):
        loading.wait(0.0)
    go_on.set()
    assert loading.wait(10) == "model"
    assert loading.wait(0.0) == "model"


def loading_that_fails_once() -> tuple[Loading[str], list[str]]:
    """It pauses for an hour then; and how often it was tried."""
    tries: list[str] = []

    def load() -> str:
        tries.append("try")
        if len(tries) == 1:
            raise OSError("the disk was away")
        return "model"

    loading = Loading("toy", load, 3600.0)
    with pytest.raises(ModelNotLoaded, match="cannot load the embedding model toy"):
        loading.wait(10)
    return loading, tries


def test_what_failed_for_a_passing_reason_is_tried_again_for_the_next_request() -> None:
    loading, tries = loading_that_fails_once()
    loading._again_at = 0.0  # The hour has passed.
    assert loading.wait(10) == "model"
    assert len(tries) == 2


def test_it_is_not_tried_again_at_once() -> None:
    loading, tries = loading_that_fails_once()
    with pytest.raises(ModelNotLoaded, match="cannot load"):
        loading.wait(10)
    assert len(tries) == 1


def only_a_pickle(folder: Path) -> Path:
    """A sentence-transformers model with its weights as a pickle, the way old ones have them."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertModel(config).save_pretrained(folder / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "hat"]
    (folder / "bert" / "vocab.txt").write_text("\n".join(words))
    (folder / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    encoder = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[encoder, Pooling(8)]).save(str(folder / "model"))
    [weights] = (folder / "model").rglob("model.safetensors")
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    return folder / "model"


def test_weights_in_a_pickle_are_not_loaded(tmp_path: Path) -> None:
    model = only_a_pickle(tmp_path)
    settings = Settings(
        environment="local",
        database_url=SecretStr("postgresql://u:p@db/d"),
        redis_url=SecretStr("redis://:p@redis"),
        embedding_model=str(model),
        embedding_dimensions=8,
    )
    with pytest.raises(OSError, match="safetensors"):
        Embedder(settings)
    with pytest.raises(OSError, match="safetensors"):
        ImageEmbedder(str(model), 8)
