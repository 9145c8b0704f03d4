"""The only SQL that changes jobs: pure builders, executed by the async and the sync side alike.

Every transition is one conditional UPDATE that returns the row, or nothing when it came too late;
it bumps `sequence`. Only the database's clock counts. Statements that a client's request leads to
take the tenant; statements of a worker take the attempt it holds (the fencing token).
"""

from shared.jobs.queries.accept import (
    accept_job,
    ensure_session,
    find_idempotent_answer,
    forget_idempotency_keys,
    insert_job,
    reserve_idempotency_key,
    session_lock,
    store_idempotent_answer,
)
from shared.jobs.queries.claims import (
    claim,
    find_lost,
    find_own_claim,
    find_suspect,
    release_leases_of,
    renew_leases,
)
from shared.jobs.queries.client_requests import (
    cancel,
    cancel_batch,
    hand_over,
    request_previews,
    retry,
    retry_batch,
)
from shared.jobs.queries.endings import (
    attempt_can_commit,
    cancel_running,
    charge_late,
    expire_running,
    fail,
    fail_or_retry,
    find_committed,
    release,
    succeed,
)
from shared.jobs.queries.lookups import (
    count_ahead,
    find_unfinished_marked,
    get_job,
    get_whole_job,
    list_attempts,
    list_jobs,
    read_states,
)
from shared.jobs.queries.parts import MAX_LOSSES, NOW, SCAN_TIME, JobRows, utc_day
from shared.jobs.queries.periodic import (
    count_due,
    delete_ended,
    expire_leases,
    expire_queued,
    expire_unfinished,
    list_due,
    list_ended,
    list_fruitless_attempts,
)

__all__ = [
    "MAX_LOSSES",
    "NOW",
    "SCAN_TIME",
    "JobRows",
    "accept_job",
    "attempt_can_commit",
    "cancel",
    "cancel_batch",
    "cancel_running",
    "charge_late",
    "claim",
    "count_ahead",
    "count_due",
    "delete_ended",
    "ensure_session",
    "expire_leases",
    "expire_queued",
    "expire_running",
    "expire_unfinished",
    "fail",
    "fail_or_retry",
    "find_committed",
    "find_idempotent_answer",
    "find_lost",
    "find_own_claim",
    "find_suspect",
    "find_unfinished_marked",
    "forget_idempotency_keys",
    "get_job",
    "get_whole_job",
    "hand_over",
    "insert_job",
    "list_attempts",
    "list_due",
    "list_ended",
    "list_fruitless_attempts",
    "list_jobs",
    "read_states",
    "release",
    "release_leases_of",
    "renew_leases",
    "request_previews",
    "reserve_idempotency_key",
    "retry",
    "retry_batch",
    "session_lock",
    "store_idempotent_answer",
    "succeed",
    "utc_day",
]
