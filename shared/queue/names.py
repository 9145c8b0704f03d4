"""Every Redis key and every Celery queue, documented in one place.

Losing all of Redis loses no job: each entry says from what it is made again.

====================================  ======  ===========================  =====================
key or queue                          type    holds                        made again from
====================================  ======  ===========================  =====================
``generate.<model>.interactive``      list    ids of queued jobs           ledger (dispatcher)
``generate.<model>.bulk``             list    ids of queued batch jobs     ledger (dispatcher)
``embed``                             list    texts to embed for a query   the client's retry
``webhooks``                          list    ids of due deliveries        ledger (dispatcher)
``unacked``, ``unacked_index``        hash,   messages that a worker       the ledger (leases)
                                      zset    holds (kombu's own)
``darkroom:events:<job id>``          stream  a job's progress events      the ledger's snapshot
``darkroom:wake:<process>``           stream  nothing: its entries wake    nothing; the next one
                                              an API process that reads    wakes
                                              events (expires)
``darkroom:stop``                     pubsub  ids of jobs to stop          the ledger (heartbeats)
``darkroom:worker:<name>``            string  a worker's announcement      the worker's heartbeat
                                              (JSON, expires)
``darkroom:workers``                  zset    names of workers by the      the workers' heartbeats
                                              time they last spoke
``darkroom:drain``                    pubsub  names of workers to drain    the ledger (each worker
                                              or to resume                 asks, too)
``darkroom:nothing``                  list    nothing: what a worker that  nothing
                                              takes no work waits for
``darkroom:loading:<model>``          string  the worker that loads the    the next look at the
                                              model now (expires)          queues
``darkroom:eta``                      string  rates and queues for ETAs    ledger (dispatcher)
                                              (JSON, expires)
``darkroom:embedding:<model>:<hash>`` string  a query's embedding          the embed queue
``darkroom:picture:<request>``        string  a small PNG to embed         the client's retry
                                              (base64, expires)
``darkroom:embedded:<request>``       list    the answer to one request    the client's retry
                                              to embed (expires)
``darkroom:limits:…``                 string  requests of a key in this    nothing; a lost minute
                                              minute and the last          is forgiven
====================================  ======  ===========================  =====================
"""

from uuid import UUID

from shared.ids import to_wire

GENERATE_TASK = "darkroom.generate"
EMBED_TASK = "darkroom.embed"
EMBED_PICTURE_TASK = "darkroom.embed_picture"
DELIVER_TASK = "darkroom.deliver"

EMBED_QUEUE = "embed"
WEBHOOK_QUEUE = "webhooks"

UNACKED = "unacked"
"""kombu's hash of what is in workers' hands: tag -> JSON of [message, exchange, routing key]."""

INTERACTIVE = "interactive"
BULK = "bulk"
LANES = (INTERACTIVE, BULK)
"""In the order in which a worker takes them."""


def generate_queue(model: str, lane: str) -> str:
    """The queue that workers of this model take jobs of this lane from."""
    return f"generate.{model}.{lane}"


def events_key(job_id: UUID) -> str:
    """A job's event stream."""
    return f"darkroom:events:{to_wire('job', job_id)}"


def wake_key(process: str) -> str:
    """Read together with the events that an API process follows, to end that read."""
    return f"darkroom:wake:{process}"


def worker_key(name: str) -> str:
    """A live worker's announcement."""
    return f"darkroom:worker:{name}"


STOP_CHANNEL = "darkroom:stop"
"""Tells the worker that runs a job to look at the ledger now rather than at its next heartbeat."""

WORKERS = "darkroom:workers"
"""The index of `worker_key`s."""

DRAIN_CHANNEL = "darkroom:drain"
"""Tells a worker to ask the ledger now whether it is to rest."""

NOTHING = "darkroom:nothing"
"""A list that nobody fills. A worker that may take nothing waits here and looks again."""

ETA = "darkroom:eta"
"""What the leading dispatcher has measured; see `shared.eta`."""


def loading_key(model: str) -> str:
    """Held by the worker that loads a model on demand, so that not all of them do."""
    return f"darkroom:loading:{model}"


def embedding_key(model: str, text_sha256: str) -> str:
    """A cached query embedding; 2: made of the parts that the model knows."""
    return f"darkroom:embedding:2:{model}:{text_sha256}"


def picture_key(request: str) -> str:
    """Where a picture lies that a CPU worker is asked to embed."""
    return f"darkroom:picture:{request}"


def embedded_key(request: str) -> str:
    """Where the answer to one request to embed is waited for."""
    return f"darkroom:embedded:{request}"


RATE_LIMIT_PREFIX = "darkroom:limits"
"""Before the keys of `limits`, which counts requests per minute."""
