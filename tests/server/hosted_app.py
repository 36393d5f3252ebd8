"""The application that `test_hosts` gives to ASGI servers."""

from durable_streams.server import DurableStreamsApp

app = DurableStreamsApp(long_poll_timeout=0.05)
