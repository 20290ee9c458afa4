"""Where the node runs: the one place that knows which class a name stands for."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, assert_never

from worker import aws
from worker.platforms.plain import PlainPlatform

if TYPE_CHECKING:
    from worker.platforms.base import Platform
    from worker.settings import Settings


def open_platform(settings: Settings) -> Platform:
    """The platform of these settings; it does no I/O before it is asked.

    From then on AWS's own metadata service is asked for nothing where its address is the platform's.
    """
    match settings.platform:
        case "plain":
            return PlainPlatform()
        case "salad":
            from worker.platforms.salad import Metadata, SaladPlatform

            aws.without_instance_metadata()
            metadata = Metadata(settings.salad.metadata_uri, rng=random.Random())
            return SaladPlatform(settings.salad, metadata, node_id=settings.node.node_id)
        case unknown:
            assert_never(unknown)
