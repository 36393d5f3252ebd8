"""The official Python SDK as a contender, run by a Python that has it; the same commands as `s2_contender`."""

import asyncio
import json
import sys
import time
from statistics import median

from s2_sdk import S2, AppendInput, Endpoints, ReadLimit, Record, SeqNum

_BATCH = 1 << 20


async def append(stream, size, count):
    body = b"x" * size
    per_batch = min(1000, _BATCH // (size + 8))
    async with stream.append_session() as session:
        for begin in range(0, count, per_batch):
            records = [Record(body=body) for _ in range(min(per_batch, count - begin))]
            await session.submit(AppendInput(records=records))


async def read(stream, size, count):
    seen = 0
    async with stream.read_session(start=SeqNum(0), limit=ReadLimit(count=count)) as session:
        async for batch in session:
            for record in batch.records:
                seen += len(record.body) == size
    assert seen == count, f"{seen} of {count} records"


async def produce(stream, size, count):
    body = b"x" * size
    async with stream.producer() as producer:
        for _ in range(count):
            await producer.submit(Record(body=body))


async def lone(stream, size, count):
    body = b"x" * size
    took = []
    async with stream.producer() as producer:
        for _ in range(count):
            began = time.perf_counter()
            await (await producer.submit(Record(body=body)))
            took.append(time.perf_counter() - began)
    return 1e3 * median(took)


WORK = {"append": append, "read": read, "produce": produce, "lone": lone}


async def main():
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        async with S2("ignored", endpoints=Endpoints(account=command["url"], basin=command["url"])) as s2:
            stream = s2.basin(command["basin"]).stream(command["stream"])
            await stream.check_tail()
            began, used = time.perf_counter(), time.process_time()
            value = await WORK[command["do"]](stream, command["size"], command["count"])
            answer = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - used, "value": value}
            print(json.dumps(answer), flush=True)


asyncio.run(main())
