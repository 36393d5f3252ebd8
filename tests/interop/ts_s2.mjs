// S2's official TypeScript SDK and its patterns package, driven by lines of JSON: see ts_client.mjs for the format.
//
// Numbers travel as strings where they may be larger than 2^53, headers as pairs of base64.

import { createInterface } from "node:readline"
import { AppendInput, AppendRecord, S2 } from "@s2-dev/streamstore"
import { serialization } from "@s2-dev/streamstore-patterns"

const say = (answer) => process.stdout.write(JSON.stringify(answer) + "\n")
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"))
const base64 = (data) => Buffer.from(data).toString("base64")
const same = (value) => value

const clients = new Map()

function streamOf({ endpoint, basin, stream, retry, compression, transport, key }) {
  const options = { accessToken: "ignored", endpoints: { account: endpoint, basin: endpoint }, retry, compression }
  const name = JSON.stringify(options)
  if (!clients.has(name)) clients.set(name, new S2(options))
  const found = clients.get(name).basin(basin).stream(stream, transport ? { forceTransport: transport } : undefined)
  return key ? found.withEncryptionKey(key) : found
}

const pairs = (headers = []) => headers.map(([name, value]) => [bytes(name), bytes(value)])
const texts = (headers = []) => headers.map(([name, value]) => [base64(name), base64(value)])

// One result each; an error is {"error": its class}, so that a sequence goes on as a reader's state would.
function each(items, act) {
  return items.map((item) => {
    try {
      return act(item)
    } catch (error) {
      return { error: error.constructor.name, code: error.code ?? null }
    }
  })
}

const commands = {
  async extract({ headers }) {
    return {
      found: each(headers, (list) => {
        const found = serialization.extractDedupeSeq(pairs(list))
        return found === undefined ? null : [found[0], String(found[1])]
      }),
    }
  },

  async filter({ headers }) {
    const filter = new serialization.DedupeFilter()
    return { accepted: each(headers, (list) => filter.shouldAccept(pairs(list))) }
  },

  async assemble({ records, maxFrameBytes }) {
    const assembler = new serialization.FrameAssembler({ maxFrameBytes })
    return {
      frames: each(records, ({ headers, body }) =>
        assembler
          .push({ headers: pairs(headers), body: bytes(body) })
          .map(({ payload, meta }) => [base64(payload), meta.bytes, meta.records]),
      ),
    }
  },

  async make({ message, chunkSize, writer, start }) {
    const records = serialization.frameChunksToRecords(serialization.chunkBytes(bytes(message), chunkSize))
    const next = serialization.injectDedupeHeaders(records, writer, start)
    return {
      records: records.map((record) => [texts(record.headers), base64(record.body), record.meteredBytes]),
      next,
    }
  },

  // `way` is "submit", message by message, or "write", the writable stream.
  async write_messages({ messages, way, options, session, ...where }) {
    const inner = await streamOf(where).appendSession(session)
    const writer = new serialization.SerializingAppendSession(inner, same, options)
    const ranges = []
    if (way === "submit") {
      for (const message of messages) ranges.push(await writer.submit(bytes(message)))
      await inner.close()
    } else {
      const sink = writer.getWriter()
      for (const message of messages) await sink.write(bytes(message))
      await sink.close()
    }
    return { ranges }
  },

  // To the tail: cancelling their reader in the middle fails ("ReadableStream is locked").
  async read_messages({ options, ...where }) {
    const inner = await streamOf(where).readSession(
      { start: { from: { seqNum: 0 } }, stop: { waitSecs: 0 }, ignoreCommandRecords: true },
      { as: "bytes" },
    )
    const messages = []
    for await (const message of new serialization.DeserializingReadSession(inner, same, options)) {
      messages.push(base64(message))
    }
    return { messages }
  },

  async append({ records, ...where }) {
    const input = records.map(({ headers, body }) =>
      AppendRecord.bytes({ body: bytes(body), headers: pairs(headers) }),
    )
    const { start, end, tail } = await streamOf(where).append(AppendInput.create(input))
    return { start: start.seqNum, end: end.seqNum, tail: tail.seqNum }
  },

  // With compression one after the other: their compressor is asynchronous, and smaller batches overtake larger ones.
  async append_session({ batches, ...where }) {
    const session = await streamOf(where).appendSession()
    const tickets = []
    for (const batch of batches) {
      const records = batch.map((body) => AppendRecord.bytes({ body: bytes(body) }))
      const ticket = await session.submit(AppendInput.create(records))
      tickets.push(ticket)
      if (where.compression && where.compression !== "none") await ticket.ack()
    }
    const ends = []
    for (const ticket of tickets) ends.push((await ticket.ack()).end.seqNum)
    await session.close()
    return { ends }
  },

  async read({ count, ...where }) {
    const batch = await streamOf(where).read(
      { start: { from: { seqNum: 0 } }, stop: { limits: { count } } },
      { as: "bytes" },
    )
    return { records: batch.records.map((record) => [texts(record.headers), base64(record.body)]) }
  },

  async read_session({ count, ...where }) {
    const session = await streamOf(where).readSession(
      { start: { from: { seqNum: 0 } }, stop: { limits: { count } } },
      { as: "bytes" },
    )
    const records = []
    for await (const record of session) records.push([texts(record.headers), base64(record.body)])
    return { records }
  },
}

async function carryOut({ id, do: name, ...command }) {
  try {
    say({ id, ok: await commands[name](command) })
  } catch (error) {
    const { name: kind, message, code, status } = error
    say({ id, error: { name: kind, message: String(message).slice(0, 500), code: code ?? null, status: status ?? null } })
  }
}

createInterface({ input: process.stdin }).on("line", (line) => carryOut(JSON.parse(line)))
process.stdin.on("end", () => setTimeout(() => process.exit(0), 100))
