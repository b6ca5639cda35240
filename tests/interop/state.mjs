// The published state layer with its database on a stream: `node state.mjs BASE_URL` prints one JSON object.
import { DurableStream } from "@durable-streams/client"
import { createStateSchema } from "@durable-streams/state"
import { createStreamDB } from "@durable-streams/state/db"

const url = `${process.argv[2]}/v1/stream/interop/state`
const anything = { "~standard": { version: 1, vendor: "test", validate: (value) => ({ value }) } }
const state = createStateSchema({ users: { schema: anything, type: "user", primaryKey: "id" } })
const contentType = "application/json"

// Actions show at once, and are confirmed when their change comes back from the stream.
const actions = ({ db, stream }) => {
  async function write(change) {
    await stream.append(JSON.stringify(change))
    await db.utils.awaitTxId(change.headers.txid)
  }
  const headers = () => ({ txid: crypto.randomUUID() })
  return {
    add: {
      onMutate: (user) => void db.collections.users.insert(user),
      mutationFn: (user) => write(state.users.insert({ value: user, headers: headers() })),
    },
    rename: {
      onMutate: ({ id, name }) => void db.collections.users.update(id, (user) => void (user.name = name)),
      mutationFn: ({ id, name }) => write(state.users.update({ value: { id, name }, headers: headers() })),
    },
    remove: {
      onMutate: ({ id }) => void db.collections.users.delete(id),
      mutationFn: ({ id }) => write(state.users.delete({ key: id, headers: headers() })),
    },
  }
}

async function opened(live) {
  const db = createStreamDB({ streamOptions: { url, contentType, warnOnHttp: false }, live, state, actions })
  await db.preload()
  return db
}

const users = (db) => [...db.collections.users.values()].map(({ id, name }) => ({ id, name })).sort((a, b) => a.id.localeCompare(b.id))

async function until(isTrue) {
  const deadline = Date.now() + 20_000
  while (!isTrue()) {
    if (Date.now() > deadline) throw new Error("not in time")
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

await DurableStream.create({ url, contentType })
const [writer, ...watchers] = await Promise.all([opened("sse"), opened("sse"), opened("long-poll")])
for (const [id, name] of [["1", "Ädä"], ["2", "Bob ☃"], ["3", "Eve"]]) await writer.actions.add({ id, name }).isPersisted?.promise
await writer.actions.rename({ id: "2", name: "Grace" }).isPersisted?.promise
await writer.actions.remove({ id: "3" }).isPersisted?.promise
const expected = JSON.stringify(users(writer))
for (const watcher of watchers) await until(() => JSON.stringify(users(watcher)) === expected)
const late = await opened("long-poll")
console.log(JSON.stringify({ writer: users(writer), watchers: watchers.map(users), late: users(late) }))
process.exit(0)
