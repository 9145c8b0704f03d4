"""What an attempt has under way, for whoever has to end it."""

from concurrent.futures import wait
from dataclasses import dataclass, field

from worker.engine.interface import Ticket
from worker.finalize import Picture

_BILL_SECONDS = 2.0
"""What a stopped attempt waits to learn what it has used: canceled rows leave with the tick."""


@dataclass
class InHand:
    """Images that the engine makes, and pictures that are in S3."""

    tickets: list[Ticket] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def stop(self) -> float:
        """Take back what is not made yet; the device seconds that all of it has used."""
        for ticket in self.tickets:
            ticket.cancel()
        wait([ticket.future for ticket in self.tickets], _BILL_SECONDS)
        return sum(ticket.gpu_seconds for ticket in self.tickets)
