// The official TypeScript client, driven by lines of JSON.
//
// Each line on standard input is a command, {"id": 1, "do": "create", "url": "...", ...}; each line on standard output
// answers one of them, {"id": 1, "ok": {...}} or {"id": 1, "error": {"name", "code", "status", "message"}}. Commands run
// at the same time, so answers may come in another order. Bytes travel as base64. A read can announce its progress with
// lines {"id": 1, "event": "items", ...}, so that the other side knows when the reader is there.
//
// The program ends when standard input closes.

import { createInterface } from "node:readline"
import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client"
import { stateCommands } from "./ts_state.mjs"

const producers = new Map()
const say = (answer) => process.stdout.write(JSON.stringify(answer) + "\n")
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"))
const base64 = (data) => Buffer.from(data).toString("base64")

// A body is given as {"base64": ...}, {"text": ...} or {"json": ...}.
function bodyOf(command) {
  if ("base64" in command) return bytes(command.base64)
  if ("text" in command) return command.text
  if ("json" in command) return JSON.stringify(command.json)
  return undefined
}

const handle = ({ url, contentType, headers }) => new DurableStream({ url, contentType, headers, warnOnHttp: false })

const commands = {
  async create(command) {
    const { url, contentType, closed, headers } = command
    const body = bodyOf(command)
    await DurableStream.create({ url, contentType, body, closed, headers, warnOnHttp: false })
    return {}
  },

  async append(command) {
    await handle(command).append(bodyOf(command), { seq: command.seq })
    return {}
  },

  // Appends all bodies without waiting in between: the client batches them.
  async append_many(command) {
    const target = handle(command)
    await Promise.all(command.bodies.map((body) => target.append(bodyOf(body))))
    return {}
  },

  async append_stream(command) {
    async function* pieces() {
      for (const body of command.bodies) yield bodyOf(body)
    }
    await handle(command).appendStream(pieces(), { seq: command.seq })
    return {}
  },

  async close(command) {
    const { finalOffset } = await handle(command).close({ body: bodyOf(command), contentType: command.contentType })
    return { finalOffset }
  },

  async head(command) {
    return await handle(command).head()
  },

  async delete(command) {
    await handle(command).delete()
    return {}
  },

  // Reads as "json", "text" or "bytes" in a live mode, until the stream is closed, `until` items (characters, bytes)
  // have come, or catching up is done. Announces each batch as an event.
  async read({ id, url, as, live, offset, until, headers, json }) {
    const response = await stream({ url, live, offset, headers, json, warnOnHttp: false })
    const batches = []
    let count = 0
    // `response.closed` resolves before the last batches have been delivered, so the end is read off the batches.
    await new Promise((resolve, reject) => {
      response.closed.catch(reject)
      const take = (batch, value, size) => {
        const { offset, upToDate, streamClosed } = batch
        batches.push(value)
        count += size
        say({ id, event: "batch", value, offset, upToDate, streamClosed })
        if (streamClosed || (live === false && upToDate) || (until !== undefined && count >= until)) resolve()
      }
      if (as === "json") response.subscribeJson((batch) => take(batch, batch.items, batch.items.length))
      else if (as === "text") response.subscribeText((batch) => take(batch, batch.text, batch.text.length))
      else response.subscribeBytes((batch) => take(batch, base64(batch.data), batch.data.length))
    })
    response.cancel()
    return { batches, offset: response.offset, contentType: response.contentType, streamClosed: response.streamClosed }
  },

  // One call that collects everything: response.json(), text() or body().
  async read_all({ url, as, live, offset, headers }) {
    const response = await stream({ url, live, offset, headers, warnOnHttp: false })
    if (as === "json") return { value: await response.json() }
    if (as === "text") return { value: await response.text() }
    return { value: base64(await response.body()) }
  },

  async producer_open({ producer, options, ...rest }) {
    producers.set(producer, new IdempotentProducer(handle(rest), producer, options))
    return {}
  },

  async producer_append({ producer, bodies }) {
    for (const body of bodies) producers.get(producer).append(bodyOf(body))
    return {}
  },

  async producer_flush({ producer }) {
    const target = producers.get(producer)
    await target.flush()
    return { epoch: target.epoch, nextSeq: target.nextSeq, offset: target.lastSuccessfulOffset }
  },

  async producer_close(command) {
    const { finalOffset } = await producers.get(command.producer).close(bodyOf(command))
    producers.delete(command.producer)
    return { finalOffset }
  },

  async producer_detach({ producer }) {
    await producers.get(producer).detach()
    producers.delete(producer)
    return {}
  },

  ...stateCommands(say),
}

async function run(command) {
  try {
    if (!(command.do in commands)) throw new Error(`no command ${command.do}`)
    say({ id: command.id, ok: await commands[command.do](command) })
  } catch (error) {
    const { name, code, status, message } = error
    say({ id: command.id, error: { name, code, status, message } })
  }
}

const lines = createInterface({ input: process.stdin })
lines.on("line", (line) => void run(JSON.parse(line)))
lines.on("close", () => process.exit(0))
