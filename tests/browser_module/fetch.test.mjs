// `createFetchClient` against a real proxy: `node --test fetch.test.mjs`, with PROXY_URL.
import assert from "node:assert/strict"
import { test } from "node:test"
import { gzipSync } from "node:zlib"
import { MemoryStorage, PROXY, drain, freshSession, says, take, turns, until, vendor, wire } from "./harness.mjs"
import { createFetchClient } from "./modules/streamkeep.js"

const BYTES = Buffer.concat([Buffer.from("é€😀\r\n\0"), Buffer.from(Array.from({ length: 256 }, (_, n) => n))])
const QUICK = { sendSeconds: 10, silenceSeconds: 10, stallSeconds: 10 }

function open({ proxyUrl = PROXY, storage = new MemoryStorage(), ...more } = {}) {
  return createFetchClient({ proxyUrl, storage, patience: QUICK, ...more })
}

const asking = (session, more = {}) => ({
  method: "POST",
  body: "{}",
  headers: { "X-Session-ID": session, "Content-Type": "application/json" },
  ...more,
})

const resuming = (session, more = {}) => ({
  headers: { "X-Session-ID": session, "X-Resume-Active-Generation": "true", ...more },
})

const REPLAY = { "X-Replay-From-Start": "true" }

/** Pieces of bytes, one for each turn. */
const pieces = (bytes, size) =>
  Array.from({ length: Math.ceil(bytes.length / size) }, (_, n) => bytes.subarray(n * size, (n + 1) * size))

test("W1: every byte arrives as it was sent", async () => {
  const { url, calls } = await vendor(says(pieces(BYTES, 1)))
  const response = await open()(url, asking(freshSession()))
  const { bytes, error } = await drain(response.body)
  assert.equal(error, null)
  assert.deepEqual(bytes, BYTES)
  assert.equal(calls.length, 1)
  assert.equal(calls[0].body.toString(), "{}")
})

test("W16: status and headers are upstream's", async () => {
  const headers = { "Content-Type": "text/plain", "x-request-id": "theirs", "x-vercel-ai-ui-message-stream": "v1" }
  const { url } = await vendor(says(["made"], { status: 201, headers }))
  const session = freshSession()
  const response = await open()(url, asking(session))
  assert.equal(response.status, 201)
  assert.equal(response.headers.get("content-type"), "text/plain")
  assert.equal(response.headers.get("x-vercel-ai-ui-message-stream"), "v1")
  assert.equal(response.headers.get("upstream-request-id"), "theirs")
  assert.equal(response.headers.get("x-session-id"), session)
  assert.equal(await response.text(), "made")
})

test("W5: an answer without a body is over at once, and leaves nothing to resume", async () => {
  const { url } = await vendor(says([], { status: 204, headers: {} }))
  const session = freshSession()
  const fetch = open()
  const response = await fetch(url, asking(session))
  assert.equal(response.status, 204)
  assert.equal(response.body, null)
  assert.equal((await fetch("", resuming(session))).status, 204)
})

test("an empty answer ends, and so does its resume", async () => {
  const { url } = await vendor(says([]))
  const session = freshSession()
  const storage = new MemoryStorage()
  assert.equal(await (await open({ storage })(url, asking(session))).text(), "")
  assert.equal((await open({ storage })("", resuming(session))).status, 204)
})

test("W14: methods without a body reach upstream", async () => {
  const { url, calls } = await vendor(says(["found"]))
  for (const method of ["GET", "HEAD", "DELETE"]) {
    const response = await open()(url, { method, headers: { "X-Session-ID": freshSession() } })
    assert.equal(await response.text(), method === "HEAD" ? "" : "found")
    assert.equal(calls.at(-1).request.method, method)
    assert.equal(calls.at(-1).body.length, 0)
  }
})

test("W15: upstream's error is passed on with its status, headers and body", async () => {
  const refuses = says(['{"why":"slow down"}'], { status: 429, headers: { "Content-Type": "application/json", "Retry-After": "77" } })
  const { url } = await vendor(refuses)
  const session = freshSession()
  const fetch = open()
  const response = await fetch(url, asking(session))
  assert.equal(response.status, 429)
  assert.equal(response.headers.get("retry-after"), "77")
  assert.deepEqual(await response.json(), { why: "slow down" })
  assert.deepEqual(fetch.pending(session), [])
})

test("the proxy's own refusals are passed on too", async () => {
  const session = freshSession()
  const response = await open()("ftp://127.0.0.1/", asking(session))
  assert.ok(response.status >= 400 && response.status < 500)
  assert.equal(typeof (await response.json()).error, "string")
})

test("W12: a repeat of a request joins it, and upstream is called once", async () => {
  const { turn, give } = turns()
  const { url, calls } = await vendor(says(pieces(BYTES, 64), { turn }))
  const session = freshSession()
  const init = asking(session, { headers: { ...asking(session).headers, "X-Request-ID": "same" } })
  const [first, second] = await Promise.all([open()(url, init), open()(url, init)])
  give(10)
  assert.deepEqual((await drain(first.body)).bytes, BYTES)
  assert.deepEqual((await drain(second.body)).bytes, BYTES)
  assert.equal(calls.length, 1)
})

test("W17: whatever was taken before, a resume gives the rest and ends", async () => {
  const { turn, give } = turns()
  const body = BYTES.subarray(0, 20)
  const { url, calls } = await vendor(says(pieces(body, 1), { turn }))
  const session = freshSession()
  const storage = new MemoryStorage()
  const reader = (await open({ storage })(url, asking(session))).body.getReader()
  const left = []
  for (let taken = 0; taken < body.length; taken++) {
    const asked = reader.read()
    await until(() => copied(storage, session).position === taken)
    left.push(copyOf(storage))
    give()
    assert.deepEqual(Buffer.from((await asked).value), body.subarray(taken, taken + 1))
  }
  give()
  for (const [taken, found] of left.entries()) {
    const response = await open({ storage: found })("", resuming(session))
    assert.equal(response.headers.get("streamkeep-start-offset"), String(taken))
    assert.deepEqual(await drain(response.body), { bytes: body.subarray(taken), error: null })
  }
  assert.equal(calls.length, 1)
})

function copyOf(storage) {
  const copy = new MemoryStorage()
  for (let index = 0; index < storage.length; index++) copy.setItem(storage.key(index), storage.getItem(storage.key(index)))
  return copy
}

function keyOf(storage, session) {
  const keys = Array.from({ length: storage.length }, (_, index) => storage.key(index))
  return keys.find((key) => key.includes(`/${session}/`))
}

const copied = (storage, session) => JSON.parse(storage.getItem(keyOf(storage, session)))

test("W17: a resume at the very end ends", async () => {
  const { url } = await vendor(says(["all of it"]))
  const session = freshSession()
  const storage = new MemoryStorage()
  const reader = (await open({ storage })(url, asking(session))).body.getReader()
  await take(reader, 9)
  const asked = copyOf(storage)
  await reader.read()
  const rest = await open({ storage: asked })("", resuming(session))
  assert.equal((await drain(rest.body)).error, null)
})

test("W18: a page that is left before the first byte finds its generation", async () => {
  const { turn, give } = turns()
  const { url, calls } = await vendor(async (exchange) => {
    await turn()
    await says(pieces(BYTES, 50))(exchange)
  })
  const session = freshSession()
  const storage = new MemoryStorage()
  open({ storage })(url, asking(session)).catch(() => {})
  await until(() => calls.length === 1)
  const resumed = open({ storage })("", resuming(session))
  give()
  const response = await resumed
  assert.equal(response.status, 200)
  assert.deepEqual(await drain(response.body), { bytes: BYTES, error: null })
  assert.equal(calls.length, 1)
})

test("a page whose storage was cleared finds what runs", async () => {
  const { turn, give } = turns()
  const { url, calls } = await vendor(says(pieces(BYTES, 50), { turn }))
  const session = freshSession()
  const storage = new MemoryStorage()
  const reader = (await open({ storage })(url, asking(session))).body.getReader()
  give(2)
  await take(reader, 60)
  storage.clear()
  const response = await open({ storage })("", resuming(session))
  give(10)
  assert.deepEqual(await drain(response.body), { bytes: BYTES, error: null })
  assert.equal(calls.length, 1)
})

test("a resume is not after what this page sends while it asks", async (context) => {
  const { url, calls } = await vendor(says(["answer"]))
  const session = freshSession()
  const heard = turns()
  const asked = []
  let tell
  const sent = new Promise((resolve) => (tell = resolve))
  const { fetch: real } = globalThis
  context.after(() => (globalThis.fetch = real))
  globalThis.fetch = async (address, init) => {
    asked.push(new URL(address).pathname)
    if (init.method !== "POST") return real(address, init).finally(() => sent)
    tell()
    await heard.turn()
    return real(address, init)
  }
  const fetch = open()
  const resumed = fetch("", resuming(session))
  const answer = fetch(url, asking(session))
  assert.equal((await resumed).status, 204)
  assert.equal(asked.filter((path) => path.includes(session)).length, 2)
  heard.give()
  assert.equal(await (await answer).text(), "answer")
  assert.equal(calls.length, 1)
})

test("W19: generations of one session do not disturb each other", async () => {
  const { turn, give } = turns()
  const slow = await vendor(says(pieces(BYTES, 50), { turn }))
  const quick = await vendor(says(["quick"]))
  const session = freshSession()
  const storage = new MemoryStorage()
  const reader = (await open({ storage })(slow.url, asking(session))).body.getReader()
  give(2)
  const begun = await take(reader, 100)
  const asked = reader.read()
  assert.equal(await (await open({ storage })(quick.url, asking(session))).text(), "quick")
  const stopper = new AbortController()
  const other = await vendor(says(["never all"], { turn: (number) => number && new Promise(() => {}) }))
  const third = await open({ storage })(other.url, asking(session, { signal: stopper.signal }))
  stopper.abort()
  assert.equal((await drain(third.body)).error.name, "AbortError")
  const response = await open({ storage })("", resuming(session))
  assert.equal(response.headers.get("streamkeep-start-offset"), "100")
  give(10)
  assert.deepEqual(Buffer.concat([begun, (await drain(response.body)).bytes]), BYTES)
  await asked
})

test("W27: two tabs and a replay get all of it, whoever reads", async () => {
  const { turn, give } = turns()
  const { url, calls } = await vendor(says(pieces(BYTES, 50), { turn }))
  const session = freshSession()
  const storage = new MemoryStorage()
  const first = await open({ storage })(url, asking(session))
  const second = await open({ storage })("", resuming(session, REPLAY))
  const elsewhere = await open()("", resuming(session, REPLAY))
  give(10)
  for (const response of [first, second, elsewhere]) {
    assert.deepEqual(await drain(response.body), { bytes: BYTES, error: null })
  }
  assert.equal(calls.length, 1)
  assert.equal((await open({ storage })("", resuming(session, REPLAY))).status, 204)
})

test("W19: a tab that lags behind brings no mark back that another tab took away", async () => {
  const { turn, give } = turns()
  const { url } = await vendor(says(pieces(BYTES, 50), { turn }))
  const session = freshSession()
  const storage = new MemoryStorage()
  const first = await open({ storage })(url, asking(session))
  const lagging = (await open({ storage })("", resuming(session, REPLAY))).body.getReader()
  give(2)
  await take(lagging, 100)
  give(10)
  assert.equal((await drain(first.body)).error, null)
  await lagging.read()
  assert.equal(storage.length, 0)
  await lagging.cancel()
  const { url: endless, calls } = await vendor(says(["begun"], { turn: (number) => number && new Promise(() => {}) }))
  const stopper = new AbortController()
  const line = await wire(PROXY)
  const impatient = { proxyUrl: line.url, storage, patience: { ...QUICK, sendSeconds: 0.01 } }
  const stopped = await open(impatient)(endless, asking(session, { signal: stopper.signal }))
  const watching = (await open(impatient)("", resuming(session, REPLAY))).body.getReader()
  await take(watching, 5)
  line.isDown = true
  line.cut()
  stopper.abort()
  await assert.rejects(stopped.text(), { name: "AbortError" })
  const refused = assert.rejects(watching.read(), { name: "AbortError" })
  await until(() => copied(storage, session).isStopped)
  line.isDown = false
  assert.equal((await open({ proxyUrl: line.url, storage })("", resuming(session))).status, 204)
  await refused
  await until(() => calls[0].isGone)
})

test("an answer that has ended is not given again once another came after it", async () => {
  const { url } = await vendor(says(["an answer"]))
  const session = freshSession()
  const storage = new MemoryStorage()
  await open({ storage })(url, asking(session))
  await (await open({ storage })(url, asking(session))).text()
  assert.equal((await open({ storage })("", resuming(session, REPLAY))).status, 204)
})

test("an answer that ended while nobody was there is given, unless its time is over", async () => {
  const { url } = await vendor(says(["an answer"]))
  const session = freshSession()
  const storage = new MemoryStorage()
  const response = await open({ storage })(url, asking(session))
  await until(async () => (await open().active(session))[0].state === "done")
  const late = await open({ storage: copyOf(storage) })("", resuming(session, { "X-Active-Generation-TTL": "0" }))
  assert.equal(late.status, 204)
  const resumed = await open({ storage })("", resuming(session))
  assert.equal(await resumed.text(), "an answer")
  await response.body.cancel()
})

test("what runs is resumed however long ago its mark was made, and whichever way the clock went", async () => {
  const { turn, give } = turns()
  const { url } = await vendor(says(pieces(BYTES, 50), { turn }))
  const session = freshSession()
  const storage = new MemoryStorage()
  await (await open({ storage })(url, asking(session))).body.cancel()
  give(1)
  for (const days of [-3, 3, -300, 300]) {
    const at = Date.now() + days * 86_400_000
    storage.setItem(keyOf(storage, session), JSON.stringify({ position: 0, at }))
    const resumed = await open({ storage })("", resuming(session, REPLAY))
    assert.deepEqual(await take(resumed.body.getReader(), 50), BYTES.subarray(0, 50))
  }
})

test("marks that nobody came back to go after a week, and others stay", async () => {
  const { url } = await vendor(says(["an answer"]))
  const storage = new MemoryStorage()
  const fetch = open({ storage })
  const session = freshSession()
  const { headers } = await fetch(url, asking(session))
  const key = keyOf(storage, session)
  const base = key.slice(0, key.indexOf(session))
  for (let number = 0; number < 300; number++) {
    storage.setItem(`${base}old-${number}/request`, JSON.stringify({ position: 0, at: Date.now() - 8 * 86_400_000 }))
  }
  storage.setItem(`${base}${session}-2/request`, JSON.stringify({ position: 0, at: Date.now() }))
  storage.setItem("theirs", "kept")
  assert.deepEqual(fetch.pending(session), [headers.get("x-request-id")])
  assert.equal(storage.length, 3)
})

const HOSTILE = ["{", "[]", "5", '"text"', "null", '{"at":"soon"}', '{"__proto__":{"position":5},"constructor":1}']
const POSITIONS = [-5, 1.5, 1e300, "7", "text", null, {}, [3], true, '1","x":"']

test("what else may stand in the storage does no harm, and sends nothing anywhere", async () => {
  const { turn, give } = turns()
  const { url, calls } = await vendor(says(["an ", "answer"], { turn }))
  const elsewhere = await vendor(says(["stolen"]))
  const session = freshSession()
  const storage = new MemoryStorage()
  const response = await open({ storage })(url, asking(session))
  const key = keyOf(storage, session)
  const urls = { streamUrl: elsewhere.url, controlUrl: elsewhere.url, proxyUrl: elsewhere.url, url: elsewhere.url }
  const marks = [...HOSTILE, ...POSITIONS.map((position) => JSON.stringify({ position, at: Date.now(), ...urls }))]
  give(2)
  for (const mark of marks) {
    storage.setItem(key, mark)
    storage.setItem(`${key.slice(0, key.lastIndexOf("/"))}/..`, mark)
    const resumed = await open({ storage })("", resuming(session))
    const start = Number(resumed.headers.get("streamkeep-start-offset"))
    assert.ok([0, 3, 7].includes(start), mark)
    assert.deepEqual(await take(resumed.body.getReader(), 9 - start), Buffer.from("an answer").subarray(start), mark)
  }
  storage.setItem(key, JSON.stringify({ position: 1_000_000, at: Date.now() }))
  await assert.rejects((await open({ storage })("", resuming(session))).text(), { status: 400 })
  const resumed = await open({ storage })("", resuming(session))
  give()
  assert.equal(await resumed.text(), "an answer")
  await response.body.cancel()
  assert.equal({}.position, undefined)
  assert.deepEqual([calls.length, elsewhere.calls.length], [1, 0])
})

test("the proxy's key goes to the proxy's own origin, wherever its answers lead", async () => {
  const elsewhere = await vendor(says([`event: control\ndata:{"streamClosed":true}\n\n`]))
  const leading = await vendor(({ response }) => {
    const found = { sessionId: "s", requestId: "r", upstreamStatus: 200, upstreamHeaders: {}, contentType: "text/plain" }
    const urls = { streamUrl: `${elsewhere.url}/data`, controlUrl: `${elsewhere.url}/control` }
    response.setHeader("Content-Type", "application/json")
    response.end(JSON.stringify({ ...found, ...urls }))
  })
  const auth = { "Streamkeep-Key": "a secret" }
  const response = await open({ proxyUrl: leading.url, auth })(leading.url, asking(freshSession()))
  await drain(response.body)
  assert.equal(leading.calls[0].request.headers["streamkeep-key"], "a secret")
  assert.ok(elsewhere.calls.length >= 2)
  for (const { request } of elsewhere.calls) assert.ok(!JSON.stringify([request.url, request.headers]).includes("secret"))
  const redirecting = await vendor(says([], { status: 307, headers: { Location: elsewhere.url } }))
  const times = elsewhere.calls.length
  const patience = { sendSeconds: 0 }
  await assert.rejects(open({ proxyUrl: redirecting.url, auth, patience })(leading.url, asking(freshSession())))
  assert.equal(elsewhere.calls.length, times)
})

test("a TTL that is no number is refused, and does not last for ever", async () => {
  await assert.rejects(open()("", resuming(freshSession(), { "X-Active-Generation-TTL": "soon" })), TypeError)
})

test("a generation is resumed by its name, as often as is wanted", async () => {
  const { url } = await vendor(says(["an answer"]))
  const session = freshSession()
  const fetch = open()
  const response = await fetch(url, asking(session))
  assert.equal(await response.text(), "an answer")
  const name = { "X-Request-ID": response.headers.get("x-request-id"), ...REPLAY }
  for (let times = 0; times < 2; times++) {
    assert.equal(await (await fetch("", resuming(session, name))).text(), "an answer")
  }
})

for (const when of ["before upstream answers", "while the body is read", "while nobody reads"]) {
  test(`W7, W20: the caller's signal closes upstream ${when}, and it stays stopped`, async () => {
    const never = () => new Promise(() => {})
    const { url, calls } = await vendor(async (exchange) => {
      if (when.startsWith("before")) await never()
      await says(["begun"], { turn: (number) => number && never() })(exchange)
    })
    const session = freshSession()
    const storage = new MemoryStorage()
    const stopper = new AbortController()
    const asked = open({ storage })(url, asking(session, { signal: stopper.signal }))
    if (when.startsWith("before")) {
      await until(() => calls.length === 1)
      stopper.abort()
      await assert.rejects(asked, { name: "AbortError" })
    } else {
      const reader = (await asked).body.getReader()
      await take(reader, 5)
      const pending = when.endsWith("is read") ? reader.read() : null
      stopper.abort()
      await assert.rejects(pending ?? reader.read(), { name: "AbortError" })
    }
    await until(() => calls[0].isGone)
    assert.equal((await open({ storage })("", resuming(session, REPLAY))).status, 204)
    await until(() => storage.length === 0)
  })
}

test("W20: a signal that is aborted already sends nothing", async () => {
  const { url, calls } = await vendor(says(["never"]))
  await assert.rejects(open()(url, asking(freshSession(), { signal: AbortSignal.abort() })), { name: "AbortError" })
  assert.equal(calls.length, 0)
})

test("a stop that nobody could hear is said again by the next page", async () => {
  const { url, calls } = await vendor(says(["begun"], { turn: (number) => number && new Promise(() => {}) }))
  const line = await wire(PROXY)
  const session = freshSession()
  const storage = new MemoryStorage()
  const stopper = new AbortController()
  const impatient = { patience: { ...QUICK, sendSeconds: 0.01 } }
  const response = await open({ proxyUrl: line.url, storage, ...impatient })(url, asking(session, { signal: stopper.signal }))
  line.isDown = true
  line.cut()
  stopper.abort()
  await drain(response.body)
  await until(() => copied(storage, session).isStopped)
  assert.equal(calls[0].isGone, false)
  line.isDown = false
  assert.equal((await open({ proxyUrl: line.url, storage })("", resuming(session, REPLAY))).status, 204)
  await until(() => calls[0].isGone)
  assert.equal(storage.length, 0)
})

test("a resumed body's signal stops upstream too", async () => {
  const { url, calls } = await vendor(says(["begun"], { turn: (number) => number && new Promise(() => {}) }))
  const session = freshSession()
  await open()(url, asking(session))
  const stopper = new AbortController()
  const resumed = await open()("", { ...resuming(session, REPLAY), signal: stopper.signal })
  const reader = resumed.body.getReader()
  await take(reader, 5)
  stopper.abort()
  await assert.rejects(reader.read(), { name: "AbortError" })
  await until(() => calls[0].isGone)
})

test("one who only stops reading leaves it running", async () => {
  const { turn, give } = turns()
  const { url, calls } = await vendor(says(pieces(BYTES, 50), { turn }))
  const session = freshSession()
  const storage = new MemoryStorage()
  const response = await open({ storage })(url, asking(session))
  give(1)
  const reader = response.body.getReader()
  await take(reader, 50)
  await reader.cancel()
  give(10)
  const resumed = await open({ storage })("", resuming(session, REPLAY))
  assert.deepEqual(await drain(resumed.body), { bytes: BYTES, error: null })
  assert.equal(calls.length, 1)
})

test("one who leaves in the middle of a read does not connect again", async () => {
  const { url } = await vendor(says(["begun"], { turn: (number) => number && new Promise(() => {}) }))
  const quick = await vendor(says(["quick"]))
  const line = await wire(PROXY)
  const fetch = open({ proxyUrl: line.url })
  const reader = (await fetch(url, asking(freshSession()))).body.getReader()
  await take(reader, 5)
  const asked = reader.read()
  await new Promise(setImmediate)
  await reader.cancel()
  assert.equal((await asked).done, true)
  for (let times = 0; times < 3; times++) await (await fetch(quick.url, asking(freshSession()))).text()
  assert.equal(line.liveReads, 4)
})

test("everybody else who reads a stopped generation sees an abort, not an end", async () => {
  const { url } = await vendor(says(["begun"], { turn: (number) => number && new Promise(() => {}) }))
  const session = freshSession()
  const fetch = open()
  const response = await fetch(url, asking(session))
  const reader = response.body.getReader()
  await take(reader, 5)
  assert.equal(await open().cancel(session, response.headers.get("x-request-id")), "cancelled")
  await assert.rejects(reader.read(), { name: "AbortError", code: "cancelled" })
})

test("an answer that upstream broke off errors the body after all its bytes", async () => {
  const { url } = await vendor(async ({ response }) => {
    response.writeHead(200, { "Content-Type": "text/plain" })
    response.write("half of")
    await new Promise((resolve) => setTimeout(resolve, 50))
    response.destroy()
  })
  const session = freshSession()
  const fetch = open()
  const { bytes, error } = await drain((await fetch(url, asking(session))).body)
  assert.equal(bytes.toString(), "half of")
  assert.equal(error.name, "GenerationError")
  assert.equal(error.code, "upstream_failed")
  assert.equal(error.sessionId, session)
  assert.deepEqual(fetch.pending(session), [])
})

test("W21: request bodies of every kind reach upstream as they are", async () => {
  const { url, calls } = await vendor(says(["taken"]))
  const form = new FormData()
  form.set("file", new Blob([BYTES]), "bytes.bin")
  const streamed = () => new Blob([BYTES]).stream()
  for (const init of [{ body: BYTES }, { body: new Blob([BYTES]) }, { body: streamed(), duplex: "half" }]) {
    await (await open()(url, { method: "PUT", headers: { "X-Session-ID": freshSession() }, ...init })).text()
    assert.deepEqual(calls.at(-1).body, BYTES)
    assert.equal(calls.at(-1).request.method, "PUT")
  }
  await (await open()(new Request(url, { method: "POST", body: form }))).text()
  const { request, body } = calls.at(-1)
  const received = await new Response(body, { headers: { "Content-Type": request.headers["content-type"] } }).formData()
  assert.deepEqual(Buffer.from(await received.get("file").arrayBuffer()), BYTES)
})

test("W10: upstream gets the request's headers, and none that are the proxy's or steer this client", async () => {
  const { url, calls } = await vendor(says(["taken"]))
  const headers = { Authorization: "Bearer vendor", "X-App": "app", "X-Session-ID": freshSession(), "X-Gate": "theirs" }
  const fetch = open({ auth: async () => ({ "X-Gate": "ours", "Streamkeep-Note": "ours" }) })
  await (await fetch(url, { method: "POST", headers, body: "x" })).text()
  const sent = calls[0].request.headers
  assert.equal(sent.authorization, "Bearer vendor")
  assert.equal(sent["x-app"], "app")
  assert.equal(sent["x-gate"], "ours")
  for (const name of ["x-session-id", "x-request-id", "x-proxy-url", "streamkeep-note", "cookie"]) assert.equal(sent[name], undefined)
  await assert.rejects(open({ auth: { Authorization: "Bearer ours" } })(url, asking(freshSession())), /Authorization/)
})

test("W23: a request that wants cookies sent is refused instead of sent without them", async () => {
  const { url, calls } = await vendor(says(["never"]))
  await assert.rejects(open()(url, asking(freshSession(), { credentials: "include" })), TypeError)
  assert.equal(calls.length, 0)
})

test("W24: a session has one name; forgetting it forgets all of it", async () => {
  const { url } = await vendor(says(["begun"], { turn: (number) => number && new Promise(() => {}) }))
  const storage = new MemoryStorage()
  const fetch = open({ storage })
  const session = `${freshSession()}:a.user@example.org`
  await fetch(url, asking(session))
  await fetch(url, asking(session))
  assert.ok(fetch.pending(session).length)
  fetch.forget(session)
  assert.equal(storage.length, 0)
  await assert.rejects(fetch(url, asking("not/one")), TypeError)
})

test("W26: a storage that is full or forbidden is done without", async () => {
  const { turn, give } = turns()
  const { url } = await vendor(says(pieces(BYTES, 50), { turn }))
  const forbidden = new Proxy({}, { get: () => { throw new Error("forbidden") } })
  for (const storage of [forbidden, null]) {
    const session = freshSession()
    await open({ storage })(url, asking(session))
    const resumed = await open({ storage })("", resuming(session))
    give(10)
    assert.deepEqual(await drain(resumed.body), { bytes: BYTES, error: null })
  }
})

test("an encoded answer is decoded, whole or cut off", async () => {
  const { turn, give } = turns()
  const packed = gzipSync(BYTES)
  const { url } = await vendor(says(pieces(packed, 40), { turn, headers: { "Content-Encoding": "gzip" } }))
  const session = freshSession()
  const response = await open()(url, asking(session))
  give(1)
  const replayed = await open()("", resuming(session, REPLAY))
  give(20)
  for (const { body } of [response, replayed]) assert.deepEqual(await drain(body), { bytes: BYTES, error: null })
})
