"""HTTP of the web UI's API."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from api.compat.a1111 import service
from api.compat.a1111.answers import serialize
from api.compat.a1111.errors import PATH
from api.compat.a1111.requests import in_their_names, to_submission
from api.compat.a1111.samplers import SCHEDULE_TYPES
from api.compat.a1111.schemas import (
    GeneratedImages,
    Img2Img,
    LoraItem,
    Options,
    OptionsChange,
    PngInfo,
    PngInfoRequest,
    ProgressAnswer,
    SamplerItem,
    ScheduleType,
    SdModel,
    Txt2Img,
)
from api.compat.jobs import (
    GENERATION_REFUSALS,
    WAIT_SECONDS,
    check_ended,
    find_earlier,
    find_images,
    held,
    json_answer,
    meaning_of,
    read_file,
    submit_or_join,
)
from api.context import Res, Resources
from api.core.auth import ImagesRead, JobsRead, JobsWrite
from api.core.bodies import EXAMPLE_IMAGE, json_body, let_go
from api.core.errors import problems
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.core.streams import Wait
from api.jobs.idempotency import IdempotencyKey, IdempotentRequest
from api.jobs.prefer_wait import wait_until_done
from api.jobs.redis_events import START
from api.jobs.schemas import Job

router = APIRouter(prefix=f"{PATH}v1", tags=["a1111"])

_EXAMPLES: dict[str, Any] = {
    "an image": {
        "prompt": "a (red:1.2) circle",
        "sampler_name": "DPM++ 2M",
        "scheduler": "Karras",
        "cfg_scale": 7,
        "seed": 7,
    }
}
_IMAGE_EXAMPLES: dict[str, Any] = {
    "an image": {
        "prompt": "the same at night",
        "init_images": [EXAMPLE_IMAGE],
        "denoising_strength": 0.6,
    }
}
_OPTION_EXAMPLES: dict[str, Any] = {"unchanged": {"CLIP_stop_at_last_layers": 1}}
_FILE_EXAMPLES: dict[str, Any] = {"a file": {"image": EXAMPLE_IMAGE}}
TextRequest = Annotated[Txt2Img, Depends(held(json_body(Txt2Img, _EXAMPLES)))]
ImageRequest = Annotated[Img2Img, Depends(held(json_body(Img2Img, _IMAGE_EXAMPLES)))]
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": GeneratedImages, "description": "The images."},
    202: {
        "model": GeneratedImages,
        "description": "With `Prefer: wait=n`: not done by then. Poll the job that `info` names.",
    },
}


@router.post(
    "/txt2img",
    operation_id="a1111.txt2img",
    summary="Generate images (web UI format)",
    response_class=Response,
    responses=_ANSWERS,
)
@problems(*GENERATION_REFUSALS)
async def txt2img(
    *,
    request: Request,
    resources: Res,
    principal: JobsWrite,
    body: TextRequest,
    idempotency_key: IdempotencyKey,
    seconds: Wait,
) -> Response:
    """Submits a job and waits for it, ten minutes at most. The password of HTTP Basic can be the
    key."""
    return await _answer(resources, principal, request, body, key=idempotency_key, seconds=seconds)


@router.post(
    "/img2img",
    operation_id="a1111.img2img",
    summary="Change an image (web UI format)",
    response_class=Response,
    responses=_ANSWERS,
)
@problems("image_refused", *GENERATION_REFUSALS)
async def img2img(
    *,
    request: Request,
    resources: Res,
    principal: JobsWrite,
    body: ImageRequest,
    idempotency_key: IdempotencyKey,
    seconds: Wait,
) -> Response:
    """As txt2img, starting from an image."""
    return await _answer(resources, principal, request, body, key=idempotency_key, seconds=seconds)


async def _answer(
    resources: Resources,
    principal: Principal,
    request: Request,
    body: Txt2Img,
    *,
    key: str | None,
    seconds: int | None,
) -> Response:
    job, was_joined = await _submit_or_join(resources, principal, request.url.path, body, key)
    let_go(
        request, body, *(() if body.repeats_images else ("init_images", "mask", "alwayson_scripts"))
    )
    headers = {"Location": job.links.self}
    if was_joined:
        headers["Idempotency-Replayed"] = "true"
    most = WAIT_SECONDS if seconds is None else seconds
    job = await wait_until_done(resources, principal, request, job, after=START, seconds=most)
    if seconds is not None and job.finished_at is None:
        return json_answer(serialize(job, body, [], []), 202, headers)
    images = await find_images(resources, principal, job)
    # As in the web UI, what was done before an interrupt is given.
    if not (job.state == "canceled" and images):
        check_ended(job)
    sent = images if body.send_images is not False else []
    files = [await read_file(resources, image) for image in sent]
    return await on_thread(json_answer, serialize(job, body, images, files), 200, headers)


async def _submit_or_join(
    resources: Resources, principal: Principal, path: str, body: Txt2Img, key: str | None
) -> tuple[Job, bool]:
    """The job, and whether it was there. A retry is known by what the client sent: what job that
    means also depends on the key's model and on the workers' heartbeats."""
    meaning = await on_thread(meaning_of, f"POST {path}", body) if key is not None else b""
    sent = IdempotentRequest(key, meaning)
    if (job := await find_earlier(resources, principal, sent)) is not None:
        return job, True
    spec = await service.spec_of(resources, principal, body)
    family = (await resources.workers.families()).get(spec.name)
    submission = await on_thread(to_submission, body, spec, family)
    with in_their_names():
        if isinstance(body, Img2Img) and body.mask and body.inpainting_mask_invert:
            submission = await service.with_inverted_mask(resources, submission)
        return await submit_or_join(resources, principal, submission, sent)


@router.get("/options", operation_id="a1111.options", summary="Get the web UI's options")
async def get_options(resources: Res, principal: JobsRead) -> Options:
    """The few that there are, as they are for this API key."""
    return await service.read_options(resources, principal)


@router.post(
    "/options",
    operation_id="a1111.set_options",
    summary="Choose the model of this API key",
    response_class=Response,
    responses={200: {"description": "Done."}},
)
async def set_options(
    resources: Res,
    principal: JobsWrite,
    change: Annotated[OptionsChange, Depends(json_body(OptionsChange, _OPTION_EXAMPLES))],
) -> Response:
    """`sd_model_checkpoint` holds for later requests with this key that name no model, and for no
    other key. Other options are refused unless they are as they are."""
    await service.change_options(resources, principal, change)
    return JSONResponse(None)


@router.get("/sd-models", operation_id="a1111.models", summary="List models (web UI format)")
async def list_models(resources: Res, _: JobsRead) -> list[SdModel]:
    """The models of GET /v1/models by their names."""
    return [service.serialize_model(spec) for spec in resources.catalog.model]


@router.get("/samplers", operation_id="a1111.samplers", summary="List the web UI's samplers")
async def list_samplers(_: JobsRead) -> list[SamplerItem]:
    """Those that any model has. Models of flow matching have few of them."""
    return service.samplers()


@router.get(
    "/schedulers", operation_id="a1111.schedulers", summary="List the web UI's schedule types"
)
async def list_schedulers(_: JobsRead) -> list[ScheduleType]:
    """`Karras` is for DPM++ 2M, whose `Automatic` it is."""
    return [ScheduleType(name=name, label=label) for name, label in SCHEDULE_TYPES.items()]


@router.get("/loras", operation_id="a1111.loras", summary="List LoRAs (web UI format)")
async def list_loras(resources: Res, principal: JobsRead) -> list[LoraItem]:
    """The catalogue's LoRAs and your tenant's."""
    return await service.loras(resources, principal)


@router.get(
    "/progress", operation_id="a1111.progress", summary="Get the progress of the web UI's job"
)
async def get_progress(
    *,
    resources: Res,
    principal: JobsRead,
    skip_current_image: Annotated[bool, Query(description="Leave out the preview.")] = False,
) -> ProgressAnswer:
    """The newest running job that this API key has submitted to this API."""
    return await service.progress(resources, principal, with_image=not skip_current_image)


_EMPTY: dict[int | str, dict[str, Any]] = {
    200: {"description": "Done, or there was nothing to stop."}
}


@router.post(
    "/interrupt",
    operation_id="a1111.interrupt",
    summary="Stop the web UI's jobs",
    response_class=Response,
    responses=_EMPTY,
)
async def interrupt(resources: Res, principal: JobsWrite) -> Response:
    """Cancels the unfinished jobs that this API key has submitted to this API, 100 at most."""
    await service.interrupt(resources, principal, only_newest=False)
    return JSONResponse({})


@router.post(
    "/skip",
    operation_id="a1111.skip",
    summary="Stop the web UI's running job",
    response_class=Response,
    responses=_EMPTY,
)
async def skip(resources: Res, principal: JobsWrite) -> Response:
    """Cancels the job that progress tells of."""
    await service.interrupt(resources, principal, only_newest=True)
    return JSONResponse({})


@router.post("/png-info", operation_id="a1111.png_info", summary="Read an image's settings")
@problems("image_refused")
async def png_info(
    resources: Res,
    _: ImagesRead,
    body: Annotated[PngInfoRequest, Depends(json_body(PngInfoRequest, _FILE_EXAMPLES))],
) -> PngInfo:
    """Of a file from here, or from a tool that writes `parameters`; nothing of it is kept."""
    return await service.png_info(resources, body.image)


_UPSCALER = {"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4}
_LISTS: dict[str, Any] = {
    "upscalers": [_UPSCALER, _UPSCALER | {"name": "Lanczos"}],
    "latent-upscale-modes": [{"name": "Latent"}],
    "sd-vae": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "scripts": {"txt2img": [], "img2img": []},
    "script-info": [],
    "cmd-flags": {},
    "memory": {"ram": {}, "cuda": {}},
}
"""What clients ask for at their start, and Darkroom has little or none of."""


def _always(content: Any) -> Callable[..., Any]:
    async def read(_: JobsRead) -> Response:
        return JSONResponse(content)

    return read


for _name, _content in _LISTS.items():
    router.add_api_route(f"/{_name}", _always(_content), include_in_schema=False)
router.add_api_route(
    "/refresh-checkpoints", _always(None), methods=["POST"], include_in_schema=False
)
