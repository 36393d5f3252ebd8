"""A model's answer goes to the user and to S2 at the same time, and can be replayed from there.

The model's tokens are teed: each is shown at once, and handed to a session that makes it durable meanwhile. Leaving the
session's block waits until all of the answer is stored.

Needs a server: `s2 lite --port 8080`.
"""

from collections.abc import AsyncIterator

import anyio

from durable_streams.s2 import S2, BasinConfig, S2Retry
from durable_streams.s2.patterns import JSON, DeserializingReadSession, SerializingAppendSession

ANSWER = "Once upon a time there was a log. Everybody could read it, and nobody could change it."


async def model() -> AsyncIterator[str]:
    """Stands in for an AI: yields its answer word by word."""
    for word in ANSWER.split(" "):
        yield word + " "
        await anyio.sleep(0.005)


async def main() -> None:
    retry = S2Retry(max_attempts=10, min_base_delay=0.1, append_retry_policy="all")
    async with S2("ignored", endpoints="http://localhost:8080", retry=retry) as s2:
        await s2.basins.ensure("my-basin", config=BasinConfig(create_stream_on_append=True))
        stream = s2.basin("my-basin").stream("agent/session/0001")
        start = await stream.append("a new answer")

        async with SerializingAppendSession(stream.append_session(), JSON, dedupe_seq=0) as for_s2:
            async for token in model():
                print(token, end="", flush=True)  # for the user
                await for_s2.write({"role": "assistant", "content": token})  # returns when it is on its way
        print("\n-- stored; and once more, from the stream:")

        session = stream.read_session(seq_num=start.end.seq_num, wait=0, ignore_command_records=True)
        async with DeserializingReadSession(session, JSON) as replay:
            async for message in replay:
                print(message["content"], end="", flush=True)
        print()


anyio.run(main)
