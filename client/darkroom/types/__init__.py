"""What the service answers, as frozen structs, and what it accepts, as typed dictionaries."""

from typing import TYPE_CHECKING

from darkroom.types import batches, images, jobs, requests, service, webhooks
from darkroom.types.batches import *
from darkroom.types.images import *
from darkroom.types.jobs import *
from darkroom.types.requests import *
from darkroom.types.service import *
from darkroom.types.webhooks import *

if not TYPE_CHECKING:  # mypy reads no sum, and would then export nothing
    __all__ = [
        name
        for module in (batches, images, jobs, requests, service, webhooks)
        for name in module.__all__
    ]
