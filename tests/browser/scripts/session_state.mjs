// A page with one session, read twice: by the published state layer with the published chunk processor, and by the proxy's own
// fold. The query says where: `proxy`, `session`.
import { createStateSchema } from "@durable-streams/state"
import { createStreamDB } from "@durable-streams/state/db"
import { StreamProcessor } from "@tanstack/ai-chunks"

const { proxy, session } = Object.fromEntries(new URLSearchParams(location.search))
const { SessionFold } = await import(`${proxy}/streamkeep-session-fold.js`)
const { batchesOf } = await import(`${proxy}/streamkeep-session-io.js`)
const url = `${proxy}/v1/stream/sessions/${session}`
const anything = { "~standard": { version: 1, vendor: "test", validate: (value) => ({ value }) } }
const state = createStateSchema({
  chunks: { schema: anything, type: "chunk", primaryKey: "id", allowSyncWhilePersisting: true },
  presence: { schema: anything, type: "presence", primaryKey: "actorId" },
  agents: { schema: anything, type: "agent", primaryKey: "agentId" },
})

// What others answered to a tool call, the published packages do not read.
const asked = ({ output, state, approval, ...part }) => part
const shown = ({ parts, ...message }) => ({ ...message, parts: parts.filter(({ type }) => type !== "tool-result").map(asked) })
const show = (name, { messages, presence, agents }) => {
  const said = messages.map(shown).sort((a, b) => a.id.localeCompare(b.id))
  document.querySelector(`#${name}`).textContent = JSON.stringify({ messages: said, presence: presence.sort(), agents: agents.sort() })
}
for (const id of ["npm", "own"]) document.querySelector("main").append(Object.assign(document.createElement("pre"), { id }))

function messageOf([first, ...rest]) {
  const chunks = [first, ...rest].map(({ chunk }) => JSON.parse(chunk))
  const { messageId: id, role, actorId } = first
  if (chunks[0].type === "user-message") return { id, role: chunks[0].message.role, actorId, parts: chunks[0].message.parts }
  const processor = new StreamProcessor()
  processor.startAssistantMessage()
  for (const chunk of chunks) processor.processChunk(chunk)
  return { id, role, actorId, parts: processor.getMessages()[0].parts }
}

const db = createStreamDB({ streamOptions: { url, contentType: "application/json", warnOnHttp: false }, live: "sse", state })
const { chunks, presence, agents } = db.collections
const showTheirs = () => {
  const groups = new Map()
  for (const row of [...chunks.values()].sort((a, b) => a.seq - b.seq)) {
    groups.set(row.messageId, [...(groups.get(row.messageId) ?? []), row])
  }
  const ids = (collection, name) => Array.from(collection.values(), (one) => one[name])
  show("npm", { messages: [...groups.values()].map(messageOf), presence: ids(presence, "actorId"), agents: ids(agents, "agentId") })
}
await db.preload()
for (const collection of [chunks, presence, agents]) collection.subscribeChanges(showTheirs, { includeInitialState: true })

const fold = new SessionFold()
const get = (at, init) => fetch(at, init)
const more = { get, url, offset: "-1", silenceSeconds: 60, stallSeconds: 45, signal: new AbortController().signal, onAway() {} }
for await (const { events, offset } of batchesOf(more)) {
  fold.apply(events, offset)
  const messages = fold.messages.map(({ id, role, actorId, parts }) => ({ id, role, actorId, parts }))
  show("own", { messages, presence: fold.presence.map((one) => one.actorId), agents: fold.agents.map((one) => one.id) })
}
