// Two people, two agents, one stream: Ann's line can be dropped and slowed, Bob's cannot.
import { find, h } from "./dom.js"
import { switches } from "./line.js"
import { Pane } from "./session-pane.js"
import { batchesOf } from "./streamkeep-session-io.js"

const SHOWN = 300
const KEPT = "streamkeep/demo/session"
const { urls } = await (await fetch("/config.json")).json()
const agent = (id, name) => ({ id, name, endpoint: `${urls.page}/agents/${id}`, format: "ai-sdk" })
const AGENTS = [agent("guide", "Guide"), agent("critic", "Critic")]

function stamped(list, text) {
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40
  const at = new Date().toISOString().slice(11, 23)
  list.append(h("li", {}, h("time", {}, at), " ", text))
  while (list.children.length > SHOWN) list.firstChild.remove()
  if (isAtEnd) list.scrollTop = list.scrollHeight
}

const clock = (text) => stamped(find("clock"), text)
const ann = new Pane(find("ann"), { name: "Ann", proxyUrl: urls.proxy, tell: clock })
const bob = new Pane(find("bob"), { name: "Bob", proxyUrl: urls.direct })

/** The stream as it is: each event, when it came. */
async function showEvents(sessionId) {
  let count = 0
  const get = async (url, init) => {
    const response = await fetch(url, init)
    if (!response.ok) throw new Error(`the stream answered ${response.status}`)
    return response
  }
  const url = `${urls.direct}/v1/stream/sessions/${sessionId}`
  const more = { get, url, offset: "-1", silenceSeconds: Infinity, stallSeconds: 45, signal: new AbortController().signal, onAway() {} }
  for await (const { events } of batchesOf(more)) {
    count += events.length
    find("count").textContent = count
    for (const { type, key, value, headers } of events.slice(-SHOWN)) {
      stamped(find("events"), `${type} ${headers?.operation} ${key} ${value?.chunk ?? JSON.stringify(value) ?? ""}`)
    }
  }
}

function sessionId() {
  const kept = localStorage.getItem(KEPT)
  if (kept) return kept
  const made = `demo-${crypto.randomUUID()}`
  localStorage.setItem(KEPT, made)
  return made
}

find("new").addEventListener("click", () => {
  localStorage.removeItem(KEPT)
  location.reload()
})
find("drop").addEventListener("click", () => clock(find("drop").getAttribute("aria-pressed") === "true" ? "the line is restored" : "the line is dropped"))
switches()

const session = sessionId()
await bob.open(session)
const known = new Set(bob.chat.collections.agents.map(({ id }) => id))
if (AGENTS.some(({ id }) => !known.has(id))) await bob.chat.registerAgents(AGENTS)
ann.open(session).catch(() => {})
await showEvents(session)
