"""Which URLs webhooks may be sent to."""

from shared.outbound import LOOPBACK, OutboundPolicy
from shared.settings import Settings


def webhook_policy(settings: Settings) -> OutboundPolicy:
    """Public https, and what the operator allows besides; the local stack allows loopback.

    On one's own machine, that is, so that webhooks can be tried out there.
    """
    if settings.environment == "local":
        return OutboundPolicy(
            allow_http=True, allowed_networks=(*LOOPBACK, *settings.webhook_allowed_networks)
        )
    return OutboundPolicy(
        allow_http=settings.webhook_allow_http,
        allowed_networks=settings.webhook_allowed_networks,
    )
