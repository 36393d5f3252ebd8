// S2's official TypeScript SDK as a contender; the same commands and answers as s2_contender.py.

import { createInterface } from "node:readline"
import {
  AppendInput,
  AppendRecord,
  BatchTransform,
  Producer,
  S2,
} from "../tests/interop/node_modules/@s2-dev/streamstore/dist/esm/index.js"

const BATCH = 1 << 20
const WINDOW = { maxInflightBytes: 5 << 20 } // as the others have it by default

const median = (samples) => samples.sort((a, b) => a - b)[samples.length >> 1]

const work = {
  async append(stream, size, count) {
    const body = new Uint8Array(size).fill(120)
    const perBatch = Math.min(1000, Math.floor(BATCH / (size + 8)))
    const session = await stream.appendSession(WINDOW)
    for (let begin = 0; begin < count; begin += perBatch) {
      const records = []
      for (let number = begin; number < Math.min(begin + perBatch, count); number++)
        records.push(AppendRecord.bytes({ body }))
      await session.submit(AppendInput.create(records))
    }
    await session.close()
  },

  async read(stream, size, count) {
    let seen = 0
    const session = await stream.readSession(
      { start: { from: { seqNum: 0 } }, stop: { limits: { count } } },
      { as: "bytes" },
    )
    for await (const record of session) seen += record.body.length === size
    if (seen !== count) throw new Error(`${seen} of ${count} records`)
  },

  async produce(stream, size, count) {
    const body = new Uint8Array(size).fill(120)
    const producer = new Producer(new BatchTransform(), await stream.appendSession(WINDOW))
    for (let number = 0; number < count; number++) await producer.submit(AppendRecord.bytes({ body }))
    await producer.close()
  },

  async lone(stream, size, count) {
    const body = new Uint8Array(size).fill(120)
    const producer = new Producer(new BatchTransform(), await stream.appendSession(WINDOW))
    const took = []
    for (let number = 0; number < count; number++) {
      const began = performance.now()
      await (await producer.submit(AppendRecord.bytes({ body }))).ack()
      took.push(performance.now() - began)
    }
    await producer.close()
    return median(took)
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, url, basin, stream, size, count } = JSON.parse(line)
  try {
    const s2 = new S2({ accessToken: "ignored", endpoints: { account: url, basin: url } })
    const handle = s2.basin(basin).stream(stream, { forceTransport: "s2s" })
    await handle.checkTail()
    const used = process.cpuUsage()
    const began = performance.now()
    const value = (await work[name](handle, size, count)) ?? null
    const seconds = (performance.now() - began) / 1000
    const { user, system } = process.cpuUsage(used)
    console.log(JSON.stringify({ seconds, cpu: (user + system) / 1e6, value }))
    await handle.close?.()
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }))
  }
}
process.exit(0)
