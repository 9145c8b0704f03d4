"""What encoders read of a text: chunks with weights, what was cut off, what is remembered."""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from shared.core.prompt_weights import Piece, PromptSyntax, parse_weights
from worker.engine.row import Tensors

_KEPT_BYTES = 256 * 2**20
"""About 800 embeddings at SDXL's width in half precision, 60 of FLUX's."""


class PromptCache:
    """The embeddings used last, up to a number of bytes. The engine's thread only."""

    def __init__(self, limit: int = _KEPT_BYTES) -> None:
        self._limit = limit
        self._kept: OrderedDict[Hashable, Tensors] = OrderedDict()
        self.bytes = 0

    def get(self, key: Hashable, encode: Callable[[], Tensors]) -> Tensors:
        """The embedding under this key; encoded now if it is not there."""
        embedding = self._kept.get(key)
        if embedding is None:
            embedding = self._kept[key] = encode()
            self.bytes += _size(embedding)
        self._kept.move_to_end(key)
        while self.bytes > self._limit and len(self._kept) > 1:
            self.bytes -= _size(self._kept.popitem(last=False)[1])
        return embedding

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0


def _size(embedding: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in embedding.values())


Reader = tuple[Any, int]
"""A tokenizer, and how many of a prompt's tokens its encoder reads, a first mark included."""


def clip_reader(tokenizer: Any) -> Reader:
    """The last place holds the end-of-text token: what stood there is cut, too."""
    return tokenizer, int(tokenizer.model_max_length) - 1


class Truncation:
    """What the tokenizers cut off. It has tokenizers of its own, so any thread may ask."""

    def __init__(self, readers: Iterable[Reader]) -> None:
        self._readers = [(copy.deepcopy(tokenizer), count) for tokenizer, count in readers]
        self._lock = threading.Lock()

    def of(self, prompt: str) -> str | None:
        """The end of the prompt that some encoder does not read, or None."""
        with self._lock:
            parts = [self._cut(tokenizer, count, prompt) for tokenizer, count in self._readers]
        return max((part for part in parts if part), key=len, default=None)

    @staticmethod
    def _cut(tokenizer: Any, count: int, prompt: str) -> str | None:
        tokens = tokenizer(prompt, truncation=False, return_offsets_mapping=True, verbose=False)
        cut = [place for place in tokens.offset_mapping[count:] if place[1] > place[0]]
        return prompt[cut[0][0] :].strip() or None if cut else None


MOST_CHUNKS = 16
"""1,200 tokens; 4,000 characters of English are about 900."""
_COMMA_REACH = 20
"""Tokens behind the last comma of a full chunk that move into the next one with it."""


class _Token(NamedTuple):
    number: int
    weight: float
    start: int
    """Where it begins in the text without marks."""


@dataclass(frozen=True)
class Chunk:
    """What CLIP reads at once, its marks included."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    length: int
    """Tokens before the padding."""


@dataclass(frozen=True)
class Chunks:
    """A prompt for one encoder."""

    chunks: tuple[Chunk, ...]
    cut: str | None
    """The end that the encoder does not read."""


def weighed(tokens: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    """(1, tokens, width), each times its weight; their mean is left as it comes out."""
    if all(weight == 1 for weight in chunk.weights):
        return tokens
    weights = torch.tensor(chunk.weights, device=tokens.device)[None, :, None]
    return (tokens.float() * weights).to(tokens.dtype)


class ChunkReader:
    """Reads weighted and long prompts. It has a tokenizer of its own, so any thread may ask."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()
        self._room = int(tokenizer.model_max_length) - 2
        self._commas = frozenset(self._numbers(","))
        self._known = lru_cache(_KEPT_READINGS)(self._read)

    def read(self, prompt: str, syntax: PromptSyntax, is_long: bool) -> Chunks:
        """One chunk, or with `is_long` as many as it takes, up to `MOST_CHUNKS`.

        Raises:
            MalformedWeights: as `parse_weights`.
        """
        with self._lock:
            return self._known(prompt, syntax, is_long)

    def _read(self, prompt: str, syntax: PromptSyntax, is_long: bool) -> Chunks:
        parts = parse_weights(prompt) if syntax == "weighted" else [[(prompt, 1.0)]]
        text = ""
        chunks: list[list[_Token]] = []
        for part in parts:
            chunks += self._divided(self._weighted(part, len(text)))
            text += "".join(piece for piece, _ in part)
        if len(chunks) > 1 and not chunks[-1]:
            chunks.pop()
        most = MOST_CHUNKS if is_long else 1
        if not is_long:  # no comma keeps tokens back from the only chunk
            tokens = [token for chunk in chunks for token in chunk]
            chunks = [tokens[: self._room], tokens[self._room :]]
        lost = [token for chunk in chunks[most:] for token in chunk]
        cut = text[lost[0].start :].strip() or None if lost else None
        return Chunks(tuple(map(self._chunk, chunks[:most])), cut)

    def _weighted(self, part: Sequence[Piece], at: int) -> list[_Token]:
        """Each piece is tokenized by itself; `at` is where the part begins."""
        tokens = []
        for text, weight in part:
            read = self._tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            places = zip(read.input_ids, read.offset_mapping, strict=True)
            tokens += [_Token(number, weight, at + start) for number, (start, _) in places]
            at += len(text)
        return tokens

    def _divided(self, tokens: Sequence[_Token]) -> list[list[_Token]]:
        """As AUTOMATIC1111 does: a full chunk ends behind its last comma, if that is near."""
        chunks: list[list[_Token]] = [[]]
        comma: int | None = None
        for token in tokens:
            chunk = chunks[-1]
            if token.number in self._commas:
                comma = len(chunk)
            elif comma is not None and self._room == len(chunk) <= comma + _COMMA_REACH:
                chunks.append(chunk[comma + 1 :])
                del chunk[comma + 1 :]
                comma = None
            if len(chunks[-1]) == self._room:
                chunks.append([])
                comma = None
            chunks[-1].append(token)
        return chunks

    def _chunk(self, tokens: Sequence[_Token]) -> Chunk:
        reader, padding = self._tokenizer, self._room - len(tokens)
        numbers = [token.number for token in tokens]
        return Chunk(
            (
                *(reader.bos_token_id, *numbers, reader.eos_token_id),
                *[reader.pad_token_id] * padding,
            ),
            (1.0, *(token.weight for token in tokens), 1.0, *[1.0] * padding),
            len(tokens) + 2,
        )

    def _numbers(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids


_KEPT_READINGS = 256
