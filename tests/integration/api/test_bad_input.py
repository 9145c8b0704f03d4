"""Whatever a client gets wrong is a 4xx problem with a code and a place, and is never queued."""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx2
import pytest

from tests.images import data_url, encode
from tests.unit.images.hostile import make_image, png

PNG = encode(make_image(), "PNG")
MAX_SEED = 2**53 - 1


class Bad(NamedTuple):
    """A job field set to something wrong, and the error expected at its pointer."""

    fields: dict[str, Any]
    pointer: str
    code: str


BAD_FIELDS = {
    "no prompt": Bad({"prompt": None}, "/prompt", "string_type"),
    "empty prompt": Bad({"prompt": ""}, "/prompt", "empty"),
    "blank prompt": Bad({"prompt": " \n\t "}, "/prompt", "empty"),
    "prompt over 4,000 characters": Bad({"prompt": "x" * 4001}, "/prompt", "too_long"),
    "NUL in the prompt": Bad({"prompt": "a\0b"}, "/prompt", "control_characters"),
    "escape in the prompt": Bad({"prompt": "a\x1bb"}, "/prompt", "control_characters"),
    "NUL in the negative prompt": Bad(
        {"negative_prompt": "\0"}, "/negative_prompt", "control_characters"
    ),
    "prompt is a number": Bad({"prompt": 7}, "/prompt", "string_type"),
    "width not a multiple of 8": Bad({"width": 100}, "/width", "multiple_of"),
    "width too small": Bad({"width": 8}, "/width", "greater_than_equal"),
    "width over the model's limit": Bad({"width": 264}, "/width", "size_over_limit"),
    "height over the model's limit": Bad({"height": 200}, "/height", "size_over_limit"),
    "height over every limit": Bad({"height": 8192}, "/height", "less_than_equal"),
    "width is true": Bad({"width": True}, "/width", "int_type"),
    "width is text": Bad({"width": "128"}, "/width", "int_type"),
    "steps 0": Bad({"steps": 0}, "/steps", "greater_than_equal"),
    "steps 10,000": Bad({"steps": 10_000}, "/steps", "less_than_equal"),
    "steps over the model's limit": Bad({"steps": 101}, "/steps", "steps_over_limit"),
    "guidance below 0": Bad({"guidance_scale": -1}, "/guidance_scale", "greater_than_equal"),
    "strength without init_image": Bad(
        {"strength": 0.5}, "/strength", "strength_without_init_image"
    ),
    "resize mode without init_image": Bad(
        {"resize_mode": "fit"}, "/resize_mode", "resize_mode_without_init_image"
    ),
    "unknown resize mode": Bad(
        {"resize_mode": "zoom", "init_image": data_url(PNG)}, "/resize_mode", "literal_error"
    ),
    "strength 0": Bad({"strength": 0, "init_image": "x"}, "/strength", "greater_than"),
    "strength so low that no step is left": Bad(
        {"strength": 0.01, "init_image": data_url(PNG)}, "/strength", "strength_too_low"
    ),
    "one step, which the default strength leaves out": Bad(
        {"steps": 1, "init_image": data_url(PNG)}, "/steps", "strength_too_low"
    ),
    "unknown model": Bad({"model": "nobody"}, "/model", "unknown_model"),
    "unknown scheduler": Bad({"scheduler": "magic"}, "/scheduler", "unknown_scheduler"),
    "unknown field": Bad({"promt": "x"}, "/promt", "extra_forbidden"),
    "unknown field with odd characters": Bad({"a/b~c": 1}, "/a~1b~0c", "extra_forbidden"),
    "unknown output format": Bad({"output_format": "gif"}, "/output_format", "literal_error"),
    "no images": Bad({"num_images": 0}, "/num_images", "greater_than_equal"),
    "too many images": Bad({"num_images": 17}, "/num_images", "too_many_images"),
    "too many seeds": Bad({"seeds": list(range(17))}, "/seeds", "too_many_images"),
    "no seeds": Bad({"seeds": []}, "/seeds", "too_short"),
    "seeds of the wrong length": Bad({"seeds": [1, 2], "num_images": 3}, "/seeds", "seeds_length"),
    "seed and seeds": Bad({"seed": 1, "seeds": [1]}, "/seeds", "conflicting_seeds"),
    "seed below 0": Bad({"seed": -1}, "/seed", "greater_than_equal"),
    "seed above 2^53-1": Bad({"seed": MAX_SEED + 1}, "/seed", "less_than_equal"),
    "seed of 20 digits": Bad({"seed": 10**20}, "/seed", "less_than_equal"),
    "last seed above 2^53-1": Bad(
        {"seed": MAX_SEED, "num_images": 2}, "/seed", "seed_out_of_range"
    ),
    "a bad seed among good ones": Bad({"seeds": [1, -2]}, "/seeds/1", "greater_than_equal"),
    "session with a slash": Bad({"session_id": "a/b"}, "/session_id", "string_pattern_mismatch"),
    "session .": Bad({"session_id": "."}, "/session_id", "string_pattern_mismatch"),
    "session ..": Bad({"session_id": ".."}, "/session_id", "string_pattern_mismatch"),
    "session begins with _": Bad({"session_id": "_up"}, "/session_id", "string_pattern_mismatch"),
    "session ends with a line": Bad(
        {"session_id": "a\n"}, "/session_id", "string_pattern_mismatch"
    ),
    "17 metadata keys": Bad({"metadata": {str(i): "" for i in range(17)}}, "/metadata", "too_long"),
    "long metadata key": Bad(
        {"metadata": {"k" * 65: "v"}}, "/metadata/" + "k" * 65, "string_too_long"
    ),
    "long metadata value": Bad({"metadata": {"k": "v" * 513}}, "/metadata/k", "string_too_long"),
    "a metadata key of our own": Bad(
        {"metadata": {"reproduces": "img_1"}}, "/metadata/reproduces", "reserved"
    ),
    "NUL in metadata": Bad({"metadata": {"k": "\0"}}, "/metadata/k", "control_characters"),
    "metadata value is a number": Bad({"metadata": {"k": 1}}, "/metadata/k", "string_type"),
    "deadline in the past": Bad({"start_within": -1}, "/start_within", "greater_than"),
    "deadline in the far future": Bad({"finish_within": 1e9}, "/finish_within", "less_than_equal"),
    "init_image is nothing known": Bad(
        {"init_image": "hello"}, "/init_image", "malformed_init_image"
    ),
    "init_image with a malformed id": Bad(
        {"init_image": "upl_123"}, "/init_image", "malformed_init_image"
    ),
    "init_image is no image": Bad(
        {"init_image": data_url(b"hello world")}, "/init_image", "image_not_recognized"
    ),
    "init_image is not base64": Bad(
        {"init_image": "data:image/png;base64,!!!!"}, "/init_image", "image_not_recognized"
    ),
    "init_image is a page": Bad(
        {"init_image": "data:text/html;base64,aGk="}, "/init_image", "image_not_recognized"
    ),
    "init_image is truncated": Bad(
        {"init_image": data_url(PNG[: len(PNG) // 2])}, "/init_image", "image_truncated"
    ),
    "init_image is a bomb": Bad(
        {"init_image": data_url(png(60_000, 60_000, data=b"\0" * 100))},
        "/init_image",
        "image_dimensions",
    ),
    "init_image over 10 MB": Bad(
        {"init_image": data_url(b"\x89PNG\r\n\x1a\n" + b"\0" * 10_500_000)},
        "/init_image",
        "image_too_large",
    ),
}

NOT_JSON = {
    "nothing": b"",
    "not JSON": b"prompt=a cat",
    "half": b'{"prompt": "a',
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "lone surrogate": b'{"prompt": "a\\ud800b"}',
    "5000 digits": b'{"prompt": "a", "guidance_scale": ' + b"9" * 5000 + b"}",
    "deeply nested": b'{"prompt": ' + b"[" * 100_000,
}

NOT_NUMBERS = {
    "NaN": b'{"prompt": "a", "guidance_scale": NaN}',
    "Infinity": b'{"prompt": "a", "guidance_scale": Infinity}',
    "1e999": b'{"prompt": "a", "guidance_scale": 1e999}',
    "float steps": b'{"prompt": "a", "steps": 8.5}',
}


@pytest.fixture(autouse=True)
def nothing_is_accepted(accepted: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Neither the database nor the queue has grown after a refusal."""
    before = accepted()
    yield
    assert accepted() == before


def check_problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The answer is a problem of this kind, in the one shape; returns it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["type"] == f"/problems/{code}"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert isinstance(problem["errors"], list)
    dialects = {"openai": {"error"}, "sdapi": {"error", "body"}}
    more: set[str] = dialects.get(answer.url.path.split("/")[1], set())
    assert set(problem) == more | {
        *("type", "title", "status", "detail", "instance", "code", "request_id", "errors")
    }
    return problem


def post(http: httpx2.Client, body: bytes, media_type: str = "application/json") -> httpx2.Response:
    return http.post("/v1/jobs", content=body, headers={"Content-Type": media_type})


@pytest.mark.parametrize("bad", BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_a_wrong_field_is_named(http: httpx2.Client, bad: Bad) -> None:
    answer = http.post("/v1/jobs", json={"prompt": "a cat", **bad.fields})
    problem = check_problem(answer, 422, "validation_failed")
    assert (bad.pointer, bad.code) in [(e["pointer"], e["code"]) for e in problem["errors"]]


def test_every_wrong_field_is_named_at_once(http: httpx2.Client) -> None:
    answer = http.post("/v1/jobs", json={"prompt": "", "steps": 0, "width": 3, "x": 1})
    problem = check_problem(answer, 422, "validation_failed")
    assert {e["pointer"] for e in problem["errors"]} == {"/prompt", "/steps", "/width", "/x"}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_json_is_refused(http: httpx2.Client, body: bytes) -> None:
    check_problem(post(http, body), 422, "malformed_json")


def test_a_lone_surrogate_is_pointed_at(http: httpx2.Client) -> None:
    problem = post(http, NOT_JSON["lone surrogate"]).json()
    assert [(e["pointer"], e["code"]) for e in problem["errors"]] == [("/prompt", "lone_surrogate")]


@pytest.mark.parametrize("body", NOT_NUMBERS.values(), ids=NOT_NUMBERS.keys())
def test_what_is_no_finite_number_is_refused(http: httpx2.Client, body: bytes) -> None:
    check_problem(post(http, body), 422, "validation_failed")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"7"])
def test_json_that_is_no_object_is_refused(http: httpx2.Client, body: bytes) -> None:
    check_problem(post(http, body), 422, "validation_failed")


def test_a_refusal_repeats_nothing_of_the_input(http: httpx2.Client) -> None:
    answer = http.post("/v1/jobs", json={"prompt": "s3cret" * 1000, "steps": "s3cret"})
    assert "s3cret" not in answer.text


def test_another_content_type_is_refused(http: httpx2.Client) -> None:
    check_problem(post(http, b'{"prompt": "a"}', "text/plain"), 415, "unsupported_media_type")


def test_a_large_body_is_refused_by_its_length(http: httpx2.Client) -> None:
    body = b'{"prompt": "' + b"x" * 20_000_000 + b'"}'
    check_problem(post(http, body), 413, "body_too_large")


def test_a_large_body_of_unknown_length_is_refused_while_it_comes(http: httpx2.Client) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100_000_000:
            sent += 1_000_000
            yield b"x" * 1_000_000

    headers = {"Content-Type": "application/json"}
    check_problem(http.post("/v1/jobs", content=endless(), headers=headers), 413, "body_too_large")


def test_a_50_mb_image_is_refused(http: httpx2.Client) -> None:
    answer = http.post("/v1/uploads", files={"file": ("a.png", PNG + b"\0" * 50_000_000)})
    check_problem(answer, 413, "body_too_large")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"hello", "image_not_recognized"),
        (PNG[: len(PNG) // 2], "image_truncated"),
        (png(60_000, 60_000, data=b"\0" * 100), "image_dimensions"),
        (PNG + b"\0" * (10 * 1024 * 1024), "image_too_large"),
        (b"", "image_not_recognized"),
    ],
    ids=["no image", "truncated", "bomb", "too large", "empty"],
)
def test_a_bad_upload_is_refused(http: httpx2.Client, content: bytes, code: str) -> None:
    answer = http.post("/v1/uploads", files={"file": ("a.png", content)})
    problem = check_problem(answer, 422, "image_refused")
    assert [(e["parameter"], e["code"]) for e in problem["errors"]] == [("file", code)]


def test_an_upload_without_a_file_is_refused(http: httpx2.Client) -> None:
    answer = http.post("/v1/uploads", files={"image": ("a.png", PNG)})
    problem = check_problem(answer, 422, "validation_failed")
    assert problem["errors"][0]["parameter"] == "file"


@pytest.mark.parametrize(
    "body", [b"", b"--x", b"--x\r\n\r\n\r\n", b"--x\r\nContent-Disposition: form-data"]
)
def test_a_broken_multipart_body_is_refused(http: httpx2.Client, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = http.post("/v1/uploads", content=body, headers=headers)
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"


def test_multipart_without_a_boundary_is_refused(http: httpx2.Client) -> None:
    headers = {"Content-Type": "multipart/form-data"}
    answer = http.post("/v1/uploads", content=b"--x--", headers=headers)
    check_problem(answer, 400, "malformed_request")


@pytest.mark.parametrize("path", ["/v1/uploads", "/v1/images/inspect", "/v1/images/edits"])
@pytest.mark.parametrize("charset", ["undefined", "punycode", "unicode_escape", "idna", "no-such"])
def test_forms_are_read_in_few_charsets(http: httpx2.Client, path: str, charset: str) -> None:
    """Some of Python's codecs raise what no parser expects, and others take minutes."""
    part = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nabc\r\n--x--\r\n'

    def send(content_type: str) -> httpx2.Response:
        return http.post(path, content=part, headers={"Content-Type": content_type})

    answer = send(f"multipart/form-data; boundary=x; charset={charset}")
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    known = send('multipart/form-data; boundary=x; charset="UTF-8"')
    assert known.json()["code"] == "validation_failed"  # the file is missing


@pytest.mark.parametrize("path", ["/v1/uploads", "/v1/batches", "/v1/search"])
def test_two_files_at_once_are_refused_as_such(http: httpx2.Client, path: str) -> None:
    files = [("file", ("a.png", PNG)), ("file", ("b.png", PNG))]
    problem = check_problem(http.post(path, files=files), 400, "malformed_request")
    assert "Too many files" in problem["detail"]


@pytest.mark.parametrize("kind", ["img", "upl"])
def test_an_initial_image_that_does_not_exist_is_not_found(http: httpx2.Client, kind: str) -> None:
    unused = {"prompt": "a", "init_image": f"{kind}_01jd4zk3v8e0x9m5q7r2t6w8ya"}
    problem = check_problem(http.post("/v1/jobs", json=unused), 404, "not_found")
    [error] = problem["errors"]
    assert (error["pointer"], error["code"]) == ("/init_image", "init_image_not_found")


def test_an_image_of_somebody_else_is_not_there(
    http: httpx2.Client, stranger: httpx2.Client
) -> None:
    upload = stranger.post("/v1/uploads", files={"file": ("a.png", PNG)}).json()
    answer = http.post("/v1/jobs", json={"prompt": "a", "init_image": upload["id"]})
    problem = check_problem(answer, 404, "not_found")
    assert problem["errors"][0]["code"] == "init_image_not_found"
    check_problem(http.get(f"/v1/uploads/{upload['id']}"), 404, "not_found")


PATHS = {
    "GET": ("/v1/jobs/{}", "/v1/jobs/{}/events", "/v1/jobs/{}/images", "/v1/uploads/{}"),
    "POST": ("/v1/jobs/{}/cancel", "/v1/jobs/{}/retry", "/v1/images/{}/reproduce"),
}
IMAGE_PATHS = ("", "/content", "/thumbnail", "/receipt")


@pytest.mark.parametrize(
    "wrong", ["01jd4zk3v8e0x9m5q7r2t6w8ya", "1", "job_", "%00", "job_ü", "..."]
)
def test_an_unknown_or_malformed_id_is_not_found(http: httpx2.Client, wrong: str) -> None:
    for method, paths in PATHS.items():
        for path in paths:
            prefix = "upl_" if "uploads" in path else "img_" if "images/{}/" in path else "job_"
            for identity in (wrong, prefix + wrong):
                check_problem(http.request(method, path.format(identity)), 404, "not_found")
    for path in IMAGE_PATHS:
        for identity in (wrong, "img_" + wrong):
            check_problem(http.get(f"/v1/images/{identity}{path}"), 404, "not_found")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=many", "limit"),
        ("state=sleeping", "state"),
        ("created_after=yesterday", "created_after"),
        ("created_after=2026-01-01T00:00:00", "created_after"),
        ("session_id=%00", "session_id"),
        ("stat=failed", "stat"),
        ("metadata.k=v", "metadata.k"),
    ],
)
def test_a_bad_query_parameter_is_named(http: httpx2.Client, query: str, parameter: str) -> None:
    problem = check_problem(http.get(f"/v1/jobs?{query}"), 422, "validation_failed")
    assert [e["parameter"] for e in problem["errors"]] == [parameter]


def test_a_misspelt_filter_does_not_widen_a_search(http: httpx2.Client) -> None:
    for path in ("/v1/search?q=a&sesion_id=s1", "/v1/search?q=a&metadata=a"):
        problem = check_problem(http.get(path), 422, "validation_failed")
        (error,) = problem["errors"]
        assert error["code"] == "unknown_parameter"
        assert "metadata.<key>" in error["message"]
        assert "session_id" in error["message"]
    assert http.get("/v1/search?q=a&metadata.k=v").status_code in (200, 503)


@pytest.mark.parametrize("key", ["", "x" * 256, "ümlaut", "tab\there"])
def test_a_malformed_idempotency_key_is_refused(http: httpx2.Client, key: str) -> None:
    headers = {"Idempotency-Key": key.encode()}
    answer = http.post("/v1/jobs", json={"prompt": "a"}, headers=headers)  # type: ignore[arg-type]
    check_problem(answer, 422, "malformed_idempotency_key")


def test_garbage_from_a_fuzzer_is_never_our_fault(http: httpx2.Client) -> None:
    values: tuple[Any, ...] = (
        None,
        True,
        -1,
        0,
        1e308,
        10**30,
        "",
        "\0",
        "\ud7ff",
        [],
        [[]],
        {},
        {"": ""},
        "x" * 9999,
    )
    fields = ("seed", "seeds", "num_images", "width", "steps", "guidance_scale", "metadata")
    more = ("session_id", "init_image", "strength", "scheduler", "model", "start_within", "prompt")
    wrong = {"prompt": ["\0"]}  # keeps each of these bodies from being accepted
    for field in fields + more:
        for value in values:
            body = json.dumps({**wrong, field: value if field != "prompt" else [value]})
            answer = post(http, body.encode())
            assert answer.status_code == 422, (field, value, answer.text)
