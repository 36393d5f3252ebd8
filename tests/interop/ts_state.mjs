// The official State Protocol package, as commands of ts_client.mjs: a StreamDB that follows a stream of ours.
//
// One schema serves all tests: rooms have an `id` and a `name`, messages an `id`, a `room` and a `text`.

import { MaterializedState, createStateSchema } from "@durable-streams/state"
import { createStreamDB } from "@durable-streams/state/db"
import { DurableStream, stream } from "@durable-streams/client"

const databases = new Map()

// A Standard Schema that demands the fields of these types and passes everything else on.
const object = (fields) => ({
  "~standard": {
    version: 1,
    vendor: "interop",
    validate(value) {
      const wrong = Object.keys(fields).filter((name) => typeof value[name] !== fields[name])
      return wrong.length ? { issues: wrong.map((name) => ({ message: `${name} is wrong` })) } : { value }
    },
  },
})

const schema = createStateSchema({
  rooms: { schema: object({ id: "string", name: "string" }), type: "room", primaryKey: "id" },
  messages: { schema: object({ id: "string", room: "string", text: "string" }), type: "message", primaryKey: "id" },
})

// Every collection as a list in order of the ids, without the package's own fields; `synced`: nothing is optimistic.
function contents(db) {
  const own = (name) => name === "_seq" || name.startsWith("$")
  const plain = (row) => Object.fromEntries(Object.entries(row).filter(([name]) => !own(name)))
  const rows = (collection) => [...collection.values()].map(plain).sort((a, b) => (a.id < b.id ? -1 : 1))
  const synced = [...db.collections.messages.values()].every((row) => row.$synced)
  return { rooms: rows(db.collections.rooms), messages: rows(db.collections.messages), synced, offset: db.offset }
}

export const stateCommands = (say) => ({
  // Opens a database, announces its contents at each change, and answers when it has loaded.
  async db_open({ id, db: name, url, live }) {
    const db = createStreamDB({
      streamOptions: { url, contentType: "application/json", warnOnHttp: false },
      live,
      state: schema,
      actions: ({ db, stream }) => ({
        post: {
          onMutate: (message) => void db.collections.messages.insert(message),
          mutationFn: async (message) => {
            const txid = `tx-${message.id}`
            await stream.append(JSON.stringify(schema.messages.insert({ value: message, headers: { txid } })))
            await db.utils.awaitTxId(txid, 20_000)
          },
        },
      }),
    })
    databases.set(name, db)
    await db.preload()
    for (const collection of Object.values(db.collections)) {
      collection.subscribeChanges(() => say({ id, event: "changed", ...contents(db) }))
    }
    return contents(db)
  },

  async db_contents({ db }) {
    return contents(databases.get(db))
  },

  async db_await_txid({ db, txid }) {
    await databases.get(db).utils.awaitTxId(txid, 20_000)
    return contents(databases.get(db))
  },

  // An optimistic action: shown at once, written to the stream, and confirmed when it comes back.
  async db_post({ db, message }) {
    const target = databases.get(db)
    const transaction = target.actions.post(message)
    const shown = contents(target)
    await transaction.isPersisted.promise
    return { shown, confirmed: contents(target) }
  },

  async db_close({ db }) {
    databases.get(db).close()
    databases.delete(db)
    return {}
  },

  // Appends events that the package's helpers made, without waiting inside a list.
  async state_append({ url, transactions }) {
    const target = new DurableStream({ url, contentType: "application/json", warnOnHttp: false })
    const made = []
    for (const calls of transactions) {
      const events = calls.map(({ on, operation, ...rest }) => schema[on][operation](rest))
      await Promise.all(events.map((event) => target.append(JSON.stringify(event))))
      made.push(...events)
    }
    return { made }
  },

  // Folds everything that a stream holds.
  async state_fold({ url }) {
    const state = new MaterializedState()
    const response = await stream({ url, live: false, warnOnHttp: false })
    for (const event of await response.json()) state.apply(event)
    const all = (type) => Object.fromEntries(state.getType(type))
    return { rooms: all("room"), messages: all("message") }
  },
})
