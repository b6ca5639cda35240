// The module `streamkeep-sessions.js` against a served proxy: `node --test sessions.test.mjs`, with PROXY_URL, KEYED_URL and PROXY_KEY.
import assert from "node:assert/strict"
import { after, test } from "node:test"
import { PROXY, freshSession, says, turns, until, vendor, wire } from "./harness.mjs"
import { createDurableChat } from "./modules/streamkeep-sessions.js"

const { KEYED_URL, PROXY_KEY } = process.env
const open = []
after(() => open.forEach((one) => one.disconnect()))

function chat(sessionId, actorId, more = {}) {
  const heard = { errors: [], finished: [], chunks: [], messages: [] }
  const callbacks = {
    onError: (error) => heard.errors.push(error),
    onFinish: ({ id }) => heard.finished.push(id),
    onChunk: ({ type }) => heard.chunks.push(type),
    onMessagesChange: (messages) => heard.messages.push(messages),
  }
  const made = createDurableChat({ proxyUrl: PROXY, sessionId, actorId, ...callbacks, ...more })
  open.push(made)
  return Object.assign(made, { heard })
}

async function connected(...chats) {
  await Promise.all(chats.map((one) => one.connect()))
  return chats
}

const texts = ({ messages }) => messages.map(({ parts }) => parts.map((part) => (part.type === "text" ? part.content : "")).join(""))

/** An agent that answers each call with the next of these scripts: lists of events of the AI SDK. */
async function withAgent(one, answers, turn) {
  const pieces = (events) => events.map((event) => `data: ${JSON.stringify(event)}\n\n`)
  const { url, calls } = await vendor((exchange) => {
    return says(pieces(answers[calls.length - 1]), { headers: { "Content-Type": "text/event-stream" }, turn })(exchange)
  })
  await one.registerAgents([{ id: "helper", name: "Helper", endpoint: url, format: "ai-sdk" }])
  return calls
}

const FINISH = { type: "finish" }
const said = (delta) => ({ type: "text-delta", id: "0", delta })
const called = (toolCallId, toolName, input) => ({ type: "tool-input-available", toolCallId, toolName, input })

function memory() {
  const kept = new Map()
  return {
    kept,
    load: async (key) => structuredClone(kept.get(key)),
    save: async (key, value) => void kept.set(key, structuredClone(value)),
    remove: async (key) => void kept.delete(key),
  }
}

test("a message is shown at once, once, and to everybody", async () => {
  const session = freshSession()
  const [ann, bob] = await connected(chat(session, "ann", { name: "Ann" }), chat(session, "bob"))
  const sent = ann.sendMessage("Hi \u2028 ☃ 𝄞")
  assert.deepEqual([texts(ann), ann.messages[0].isPending], [["Hi \u2028 ☃ 𝄞"], true])
  const id = await sent
  await until(() => bob.messages.length && !ann.messages[0].isPending)
  assert.deepEqual(texts(bob), texts(ann))
  const [message] = bob.messages
  assert.deepEqual([message.id, message.actorId, message.actorName, message.role], [id, "ann", "Ann", "user"])
  assert.ok(message.createdAt instanceof Date)
  assert.equal(bob.messages[0], message, "what did not change is the same object")
  await bob.append({ id: "rules", role: "system", content: "Be brief" })
  await bob.append({ id: "rules", role: "system", content: "Be brief" })
  await until(() => texts(ann).length === 2)
  assert.deepEqual(ann.messages.map(({ role }) => role), ["user", "system"])
})

test("what is refused is taken back, and told", async () => {
  const [ann] = await connected(chat(freshSession(), "ann"))
  const shown = []
  const leave = ann.subscribe(() => shown.push(ann.messages.length))
  await assert.rejects(ann.append({ id: "no id!", content: "Hi" }), { status: 400 })
  assert.deepEqual([ann.messages, ann.heard.errors.length, ann.error?.status], [[], 1, 400])
  assert.ok(shown.includes(1))
  leave()
  await ann.append({ id: "one", content: "Hi" })
  assert.equal(ann.error, null)
  await assert.rejects(ann.append({ id: "one", content: "Ho" }), { code: "message_exists" })
  assert.deepEqual(texts(ann), ["Hi"])
})

test("callbacks hear of what comes, and not of what was there", async () => {
  const session = freshSession()
  const [ann] = await connected(chat(session, "ann"))
  const { turn, give } = turns()
  const failure = { type: "error", errorText: "no model" }
  await withAgent(ann, [[said("Hel"), said("lo"), FINISH], [failure]], turn)
  await ann.sendMessage("Hi")
  await until(() => ann.isLoading)
  give(1)
  await until(() => texts(ann)[1] === "Hel")
  give(3)
  await until(() => !ann.isLoading)
  assert.deepEqual([texts(ann), ann.heard.finished], [["Hi", "Hello"], [ann.messages[1].id]])
  await until(() => ann.heard.chunks.length === 5)
  assert.deepEqual(ann.heard.chunks, ["message-start", "content", "content", "done", "message-end"])
  const [late] = await connected(chat(session, "bob"))
  assert.deepEqual([texts(late), late.heard.finished, late.heard.chunks], [["Hi", "Hello"], [], []])
  await late.sendMessage("Again")
  give(2)
  await until(() => late.heard.errors.length)
  assert.deepEqual([late.heard.errors[0].message, late.heard.finished], ["no model", [late.messages[3].id]])
})

test("a tool runs once, where the question was asked, and its agent goes on", async () => {
  const session = freshSession()
  const runs = []
  const weather = (whose) => (input) => {
    runs.push(whose)
    return { ...input, celsius: 21 }
  }
  const fails = () => {
    throw new Error("no such place")
  }
  const [ann, bob] = await connected(
    chat(session, "ann", { tools: { weather: weather("ann"), map: fails } }),
    chat(session, "bob", { tools: [{ name: "weather", execute: weather("bob") }] }),
  )
  const calls = await withAgent(ann, [
    [called("one", "weather", { city: "Łódź" }), FINISH],
    [called("one", "map", {}), FINISH],
    [said("Lost."), FINISH],
  ])
  await ann.sendMessage("Weather?")
  await until(() => texts(bob).at(-1) === "Lost.")
  const [first, second] = bob.collections.toolCalls
  assert.deepEqual([first.state, first.result.output], ["complete", { city: "Łódź", celsius: 21 }])
  assert.deepEqual([second.state, second.result.error, runs], ["error", "no such place", ["ann"]])
  assert.deepEqual(bob.messages[1].parts.map(({ type }) => type), ["tool-call", "tool-result"])
  assert.equal(calls.length, 3)
})

test("an approval is answered once, for all", async () => {
  const session = freshSession()
  const [ann, bob] = await connected(chat(session, "ann"), chat(session, "bob"))
  const asked = { type: "tool-approval-request", toolCallId: "call", approvalId: "ok?" }
  await withAgent(ann, [[called("call", "pay", {}), asked, FINISH], [said("Paid."), FINISH]])
  await ann.sendMessage("Pay")
  await until(() => [ann, bob].every((one) => one.collections.approvals[0]?.status === "pending"))
  bob.pause()
  const given = ann.addToolApprovalResponse({ id: "ok?", approved: true })
  assert.equal(ann.collections.approvals[0].status, "approved")
  assert.deepEqual([ann.messages[1].parts[0].state, ann.messages[1].parts[0].approval.approved], ["approval-responded", true])
  await given
  await assert.rejects(bob.addToolApprovalResponse({ id: "ok?", approved: false }), { code: "already_answered" })
  assert.equal(bob.collections.approvals[0].status, "pending")
  bob.resume()
  await until(() => texts(bob).at(-1) === "Paid.")
  assert.deepEqual([bob.collections.approvals[0].status, bob.collections.approvals[0].respondedBy], ["approved", "ann"])
})

test("a client that was disconnected, or paused, goes on", async () => {
  const session = freshSession()
  const [ann, bob] = await connected(chat(session, "ann"), chat(session, "bob"))
  bob.disconnect()
  await assert.rejects(bob.sendMessage("Hi"), /not connected/)
  await ann.sendMessage("one")
  const again = bob.connect()
  bob.disconnect()
  await assert.rejects(again, { name: "AbortError" })
  assert.equal(bob.connectionStatus, "disconnected")
  await connected(bob)
  assert.deepEqual([texts(bob), bob.connectionStatus, bob.heard.errors.length], [["one"], "connected", 1])
  bob.pause()
  await ann.sendMessage("two")
  await bob.sendMessage("three")
  assert.deepEqual(texts(bob), ["one", "three"])
  bob.resume()
  await until(() => texts(bob).length === 3)
  assert.deepEqual(texts(bob), ["one", "two", "three"])
  bob.clear()
  assert.deepEqual(texts(bob), [])
  await ann.sendMessage("four")
  await until(() => texts(bob).length)
  assert.deepEqual(texts(bob), ["four"])
})

test("a fold that was kept is shown while the proxy is away, and only what is new is read", async () => {
  const session = freshSession()
  const cache = memory()
  const [ann] = await connected(chat(session, "ann", { cache }))
  await ann.sendMessage("one")
  await until(() => !ann.messages[0].isPending)
  ann.disconnect()
  const [bob] = await connected(chat(session, "bob"))
  await bob.sendMessage("two")
  const line = await wire(PROXY)
  line.isDown = true
  const again = chat(session, "ann", { cache, proxyUrl: PROXY, patience: { sendSeconds: 20 } })
  const reached = again.connect()
  await until(() => texts(again).length)
  assert.equal(texts(again)[0], "one")
  await reached
  assert.deepEqual([texts(again), again.heard.errors], [["one", "two"], []])
  again.disconnect()
  await fetch(`${PROXY}/v1/sessions/${session}`, { method: "DELETE" })
  const [anew] = await connected(chat(session, "ann", { cache }))
  assert.deepEqual(texts(anew), [])
})

for (const trouble of [{ bytesEach: 4000 }, { isDribbling: true }, { holdsEvents: true }]) {
  test(`a line with ${Object.keys(trouble)} loses nothing, and repeats nothing`, async () => {
    const session = freshSession()
    const line = await wire(PROXY, trouble)
    const patience = trouble.holdsEvents ? { stallSeconds: 0.3 } : {}
    const [ann] = await connected(chat(session, "ann"))
    await ann.sendMessage("0")
    const far = chat(session, "bob", { proxyUrl: line.url, patience })
    await far.connect()
    for (const word of ["1", "2", "3"]) await ann.sendMessage(word)
    await far.sendMessage("4")
    line.cut()
    await ann.sendMessage("5")
    await until(() => texts(far).length === 6 && texts(ann).length === 6)
    assert.deepEqual([texts(far), texts(ann), far.heard.errors], [["0", "1", "2", "3", "4", "5"], texts(far), []])
    await until(() => far.connectionStatus === "connected")
  })
}

test("others see who is there, who types, and who has left", async () => {
  const session = freshSession()
  const [ann, bob] = await connected(chat(session, "ann", { name: "Ann", presence: true }), chat(session, "bob"))
  const seen = () => bob.collections.presence.map(({ actorId, name, typing }) => `${actorId} ${name} ${typing}`)
  await until(() => seen()[0] === "ann Ann false")
  ann.typing()
  await until(() => seen()[0] === "ann Ann true")
  await ann.sendMessage("Hi")
  await until(() => seen()[0] === "ann Ann false")
  ann.disconnect()
  await until(() => seen().length === 0)
  assert.deepEqual(bob.collections.participants.map(({ actorId }) => actorId), ["ann"])
})

test("one of two tabs that leaves does not say goodbye for both", async () => {
  const session = freshSession()
  const tab = () => chat(session, "ann", { presence: true })
  const [one, two, bob] = await connected(tab(), tab(), chat(session, "bob"))
  await until(() => bob.collections.presence.length === 1)
  const counts = []
  bob.subscribe(() => counts.push(bob.collections.presence.length))
  one.disconnect()
  await until(() => counts.includes(0) && counts.at(-1) === 1)
  two.disconnect()
  await until(() => counts.at(-1) === 0)
})

test("a callback that throws stops nothing", async () => {
  const session = freshSession()
  const thrown = []
  // As browsers have it.
  globalThis.reportError = (error) => thrown.push(error.message)
  const fails = () => {
    throw new Error("mine")
  }
  const [ann] = await connected(chat(session, "ann", { onMessagesChange: fails, onResponse: fails }))
  ann.subscribe(fails)
  await ann.sendMessage("one")
  await until(() => thrown.length)
  await ann.sendMessage("two")
  await until(() => texts(ann).length === 2 && !ann.messages[1].isPending)
  assert.deepEqual([ann.connectionStatus, ann.heard.errors, new Set(thrown)], ["connected", [], new Set(["mine"])])
})

test("what is absurdly deep, or no event at all, hurts nobody", async () => {
  const session = freshSession()
  const [ann] = await connected(chat(session, "ann", { cache: memory() }))
  const deep = `${"[".repeat(50_000)}${"]".repeat(50_000)}`
  const row = (seq, chunk) => {
    const value = { messageId: "a", actorId: "eve", role: "assistant", chunk, seq, createdAt: "then" }
    return { type: "chunk", key: `a:${seq}`, value, headers: { operation: "insert" } }
  }
  const events = [
    row(0, `{"type":"tool_call","toolCall":{"id":"c","function":{"name":"f","arguments":"{}"}}}`),
    row(1, `{"type":"tool_result","toolCallId":"c","content":${deep}}`),
    row(2, `{"type":"content","delta":"on"}`),
    ...[null, 7, "text", [], {}, { type: "chunk", headers: { operation: "insert" } }],
    row(3, `{"type":"done"}`),
  ]
  const init = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(events) }
  assert.equal((await fetch(`${PROXY}/v1/stream/sessions/${session}`, init)).status, 204)
  await until(() => ann.messages[0]?.isComplete)
  assert.deepEqual([texts(ann), ann.messages[0].createdAt], [["on"], undefined])
  ann.disconnect()
  assert.deepEqual(ann.heard.errors, [])
})

test("connecting, leaving and connecting again at once reads all once", async () => {
  const session = freshSession()
  const cache = memory()
  const [ann] = await connected(chat(session, "ann", { cache }))
  await ann.sendMessage("one")
  await until(() => ann.collections.statistics.messageCount)
  ann.disconnect()
  await until(() => cache.kept.size)
  const again = chat(session, "ann", { cache: { ...cache, load: (key) => new Promise((resolve) => setTimeout(() => resolve(cache.load(key)), 50)) } })
  again.connect().catch(() => {})
  again.disconnect()
  await again.connect()
  again.pause()
  again.resume()
  await ann.connect()
  await ann.sendMessage("two")
  await until(() => texts(again).length === 2)
  assert.deepEqual([texts(again), again.collections.statistics.messageCount], [["one", "two"], 2])
})

test("agents come and go, answers are asked for again and stopped, and forks share what was said", async () => {
  const session = freshSession()
  const [ann] = await connected(chat(session, "ann"))
  await ann.sendMessage("one")
  // It never answers.
  const { url: endpoint } = await vendor(({ response }) => new Promise((resolve) => response.on("close", resolve)))
  await ann.registerAgents([{ id: "helper", endpoint, headers: { Authorization: "Bearer secret" } }])
  await until(() => ann.collections.agents.length)
  assert.deepEqual(ann.collections.agents[0].id, "helper")
  assert.equal(JSON.stringify(ann.collections).includes("secret"), false)
  await ann.reload()
  await until(() => ann.isLoading)
  await ann.stop()
  await until(() => !ann.isLoading)
  await ann.unregisterAgent("helper")
  await until(() => !ann.collections.agents.length)
  await ann.sendMessage("two")
  const { sessionId } = await ann.fork({ atMessageId: ann.messages[0].id })
  const [other] = await connected(chat(sessionId, "ann"))
  assert.deepEqual(texts(other), ["one"])
  await assert.rejects(ann.fork({ atMessageId: "nothing" }), { status: 404 })
  assert.equal(ann.heard.errors.length, 1)
})

test("a proxy with keys is asked with them, and one that says no is an error", async () => {
  const session = freshSession()
  const at = { proxyUrl: KEYED_URL }
  const [ann] = await connected(chat(session, "ann", { ...at, auth: async () => ({ "Streamkeep-Key": PROXY_KEY }) }))
  await ann.sendMessage("Hi")
  const stranger = chat(session, "eve", at)
  await assert.rejects(stranger.connect(), { status: 401 })
  assert.deepEqual([stranger.connectionStatus, stranger.heard.errors.length, stranger.error.status], ["error", 1, 401])
  const [bob] = await connected(chat(session, "bob", { ...at, stream: { headers: { "Streamkeep-Key": PROXY_KEY } } }))
  assert.deepEqual(texts(bob), ["Hi"])
})
