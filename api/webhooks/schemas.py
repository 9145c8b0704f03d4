"""What clients send about webhooks and what they get."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from api.core.bodies import RequestModel
from api.core.errors import RuleBroken
from api.core.serialization import AnswerModel, UtcTime

JobEventName = Literal[
    "job.started", "job.progress", "job.succeeded", "job.failed", "job.canceled", "job.expired"
]
EventName = Literal[
    JobEventName, "batch.validated", "batch.completed", "batch.failed", "batch.canceled"
]
"""Events to subscribe to."""
AnyEventName = Literal[EventName, "endpoint.test", "endpoint.disabled"]
DeliveryStateName = Literal["pending", "succeeded", "failed"]


def _no_control_characters(text: str) -> str:
    if not text.isprintable():
        raise RuleBroken("control_characters", "Control characters are not allowed.")
    return text


def _distinct(names: list[Any]) -> list[Any]:
    return list(dict.fromkeys(names))


Url = Annotated[str, Field(min_length=1, max_length=2048)]
Events = Annotated[list[EventName], Field(min_length=1, max_length=32), AfterValidator(_distinct)]
Description = Annotated[str, Field(max_length=500), AfterValidator(_no_control_characters)]


class JobWebhook(RequestModel):
    """A receiver for one job's events, in addition to the tenant's endpoints."""

    url: Url = Field(description="https; signed with the secret of GET /v1/webhook-secret.")
    events: (
        Annotated[list[JobEventName], Field(min_length=1, max_length=32), AfterValidator(_distinct)]
        | None
    ) = Field(default=None, description="Default: the four ways in which a job can end.")


class BatchWebhook(RequestModel):
    """A receiver for the events of one batch and, where they are named, of its jobs."""

    url: Url = Field(description="https; signed with the secret of GET /v1/webhook-secret.")
    events: Events | None = Field(default=None, description="Default: all batch events.")


class EndpointCreation(RequestModel):
    """A receiver to register."""

    url: Url = Field(description="https, on port 443 or 80; redirects are not followed.")
    events: Events | None = Field(
        default=None, description="Default: the ends of jobs, and all batch events."
    )
    description: Description = ""
    """Purpose, up to 500 characters."""
    enabled: bool = True
    """Whether events are sent to it."""
    signature: Literal["v1", "v1a"] = Field(
        default="v1",
        description="v1: HMAC-SHA256 with a shared secret. v1a: ed25519 with a public key.",
    )


class EndpointUpdate(RequestModel):
    """Changes to an endpoint; fields that are left out stay."""

    url: Url | None = None
    """https, on port 443 or 80; redirects are not followed."""
    events: Events | None = None
    """Names of the events to send, instead of the present ones."""
    description: Description | None = None
    """Purpose, up to 500 characters."""
    enabled: bool | None = Field(
        default=None, description="true also clears the reason why Darkroom disabled it."
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        for name in self.model_fields_set:
            if getattr(self, name) is None:
                raise RuleBroken("null", f"{name} cannot be null.", f"/{name}")
        if not self.model_fields_set:
            raise RuleBroken("nothing_to_change", "Name at least one field to change.")
        return self


class EndpointLinks(AnswerModel):
    """Links from an endpoint."""

    self: str
    """This endpoint."""
    deliveries: str
    """Its deliveries."""
    test: str
    """POST here to send a test event."""


class Endpoint(AnswerModel):
    """A registered receiver."""

    id: str
    """`whe_…`."""
    url: str
    """Where events are sent."""
    description: str
    """Purpose."""
    events: list[str]
    """Names of the events that are sent."""
    enabled: bool
    """Whether events are sent to it."""
    disabled_reason: Literal["by_client", "failing", "gone"] | None
    """`by_client`: you switched it off. `failing`: it failed for five days. `gone`: it answered
    410. Null while enabled."""
    failing_since: UtcTime | None = Field(
        description="The first failure since the last success; five days of failures disable it."
    )
    signature: Literal["v1", "v1a"]
    """v1: HMAC-SHA256 with a shared secret. v1a: ed25519 with a public key."""
    public_keys: list[str] = Field(
        description="v1a: `whpk_…`, the current one first; one more for 24 hours of rotation."
    )
    created_at: UtcTime
    """When it was registered."""
    links: EndpointLinks
    """URLs of related resources. They need the API key."""


class EndpointWithSecret(Endpoint):
    """A registered receiver, with the secret that is shown this once."""

    secret: str | None = Field(description="`whsec_…`; null for v1a, which shares none.")


class TenantSecret(AnswerModel):
    """The secret that signs requests for jobs' and batches' own webhooks."""

    secret: str
    """`whsec_…`: the key of the HMAC, in base64."""
    created_at: UtcTime
    """When it was made."""
    previous_expires_at: UtcTime | None = Field(
        description="Until then the secret before this one signs as well."
    )


class AttemptError(AnswerModel):
    """Why an attempt failed."""

    code: str
    """A stable code, such as `deadline_exceeded` or `connection_failed`."""
    message: str
    """A human-readable explanation."""


class DeliveryAttempt(AnswerModel):
    """One request to the receiver."""

    number: int
    """Counts the delivery's attempts, from 1."""
    started_at: UtcTime
    """When the request was sent."""
    latency_ms: float
    """From there to the end of the answer, in milliseconds."""
    status: int | None
    """HTTP status of the answer. Null: there was none."""
    error: AttemptError | None
    """Why there was no answer that counts. Null: there was one."""
    response: str | None = Field(description="The beginning of the answer's body, 1 kB at most.")


class Delivery(AnswerModel):
    """One event on its way to one receiver."""

    id: str
    """`whd_…`."""
    event_id: str = Field(description="The `webhook-id` of every attempt.")
    event: AnyEventName
    """Name of the event."""
    sequence: int
    """Orders the events of one job or batch; also in the payload."""
    state: DeliveryStateName
    """`pending` until it succeeds or is given up as `failed`."""
    endpoint_id: str | None = Field(description="null: the job's or batch's own webhook.")
    url: str
    """Where it is sent."""
    job_id: str | None
    """The job that it tells of, `job_…`. Null: of none."""
    batch_id: str | None
    """The batch that it tells of, `batch_…`. Null: of none."""
    attempts: list[DeliveryAttempt]
    """The requests made so far, oldest first."""
    next_attempt_at: UtcTime | None
    """When it is tried next. Null once it has ended."""
    created_at: UtcTime
    """When the event happened."""
    finished_at: UtcTime | None
    """When it succeeded or was given up. Null while pending."""


class RedeliveryCount(AnswerModel):
    """Result of redelivering a range."""

    deliveries: int
    """Deliveries that go out again."""


UPDATE_EXAMPLES: dict[str, Any] = {"off for now": {"enabled": False}}
ENDPOINT_EXAMPLES: dict[str, Any] = {
    "ends of jobs": {
        "url": "https://example.com/hooks/darkroom",
        "events": ["job.succeeded", "job.failed"],
    },
    "everything of batches, ed25519": {
        "url": "https://example.com/hooks/batches",
        "events": ["batch.validated", "batch.completed", "batch.failed", "batch.canceled"],
        "signature": "v1a",
    },
}
