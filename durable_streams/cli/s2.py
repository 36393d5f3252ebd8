"""`durable-streams s2`: the commands for S2, the stream store of s2.dev and of `s2 lite`."""

from __future__ import annotations

import click

from .help import Group
from .s2_manage import basins, streams
from .s2_metrics import metrics
from .s2_records import append, fence, read, tail, trim


@click.group(
    cls=Group,
    short_help="Work with S2, the stream store.",
    examples=[
        "durable-streams s2 basins create my-basin --endpoint http://localhost:8080",
        "durable-streams s2 streams create my-basin/chat",
        "durable-streams s2 append my-basin/chat hello",
        "durable-streams s2 read my-basin/chat --follow",
    ],
    commands=[basins, streams, append, read, tail, fence, trim, metrics],
)
def s2() -> None:
    """Work with S2: s2.dev, or `s2 lite` on your own machine.

    S2_ACCESS_TOKEN is the token; S2_ACCOUNT_ENDPOINT and S2_BASIN_ENDPOINT, or --endpoint, say where the service is,
    and S2_ENCRYPTION_KEY is the key of encrypted streams. With S2_SSL_NO_VERIFY=1, or --insecure, certificates are not
    checked.
    """
