// `createFetchClient` where connections break, hang and are kept from it: `node --test outages.test.mjs`, with PROXY_URL.
import assert from "node:assert/strict"
import { test } from "node:test"
import { MemoryStorage, PROXY, drain, freshSession, says, take, turns, until, vendor, wire } from "./harness.mjs"
import { createFetchClient } from "./modules/streamkeep.js"

const { KEYED_URL, PROXY_KEY } = process.env
const BYTES = Buffer.from(Array.from({ length: 600 }, (_, n) => (n * 7 + (n >> 8)) % 256))
const PATIENCE = { sendSeconds: 15, silenceSeconds: 15, stallSeconds: 15 }
const asking = (session) => ({ method: "POST", body: "{}", headers: { "X-Session-ID": session } })
const resuming = (session) => ({ headers: { "X-Session-ID": session, "X-Resume-Active-Generation": "true" } })

function open(proxyUrl, { patience, ...more } = {}) {
  return createFetchClient({ proxyUrl, storage: new MemoryStorage(), patience: { ...PATIENCE, ...patience }, ...more })
}

const inPieces = (size) => Array.from({ length: Math.ceil(BYTES.length / size) }, (_, n) => BYTES.subarray(n * size, (n + 1) * size))

test("connections that break at every byte of what they carry cost none", async () => {
  const { url, calls } = await vendor(says([BYTES]))
  const whole = open(PROXY)
  const session = freshSession()
  await (await whole(url, { ...asking(session), headers: { "X-Session-ID": session, "X-Request-ID": "one" } })).text()
  const found = (await whole.active(session))[0]
  assert.equal(found.state, "done")
  // Beyond the head of an answer, which is some 900 bytes, each connection gets a little further.
  await Promise.all(
    Array.from({ length: 60 }, async (_, number) => {
      const line = await wire(PROXY, { bytesEach: 1700 + number * 13 })
      const headers = { ...resuming(session).headers, "X-Request-ID": "one", "X-Replay-From-Start": "true" }
      const response = await open(line.url)("", { headers })
      assert.deepEqual(await drain(response.body), { bytes: BYTES, error: null })
    }),
  )
  assert.equal(calls.length, 1)
})

test("what the network gives byte by byte is put together", async () => {
  const { url } = await vendor(says(inPieces(100)))
  const line = await wire(PROXY, { isDribbling: true })
  const response = await open(line.url)(url, asking(freshSession()))
  assert.deepEqual(await drain(response.body), { bytes: BYTES, error: null })
})

test("every connection that is cut in the middle is followed by another", async () => {
  const { turn, give } = turns()
  const { url, calls } = await vendor(says(inPieces(30), { turn }))
  const line = await wire(PROXY)
  const reader = (await open(line.url)(url, asking(freshSession()))).body.getReader()
  const found = []
  for (let number = 0; number < BYTES.length / 30; number++) {
    give()
    found.push(await take(reader, 30))
    line.cut()
  }
  give()
  assert.equal((await reader.read()).done, true)
  assert.deepEqual(Buffer.concat(found), BYTES)
  assert.equal(calls.length, 1)
})

test("a request whose answer was lost is repeated under its ids, and upstream is called once", async () => {
  const { turn, give } = turns()
  const { url, calls } = await vendor(async (exchange) => {
    await turn()
    await says(inPieces(100))(exchange)
  })
  const line = await wire(PROXY)
  const asked = open(line.url)(url, asking(freshSession()))
  await until(() => calls.length === 1)
  line.cut()
  await until(() => line.connections > 1)
  give()
  assert.deepEqual(await drain((await asked).body), { bytes: BYTES, error: null })
  assert.equal(calls.length, 1)
})

test("a proxy that stays away errors the body, and the rest can be had later", async () => {
  const { turn, give } = turns()
  const { url } = await vendor(says(inPieces(100), { turn }))
  const line = await wire(PROXY)
  const session = freshSession()
  const fetch = open(line.url, { patience: { silenceSeconds: 0.3 } })
  const reader = (await fetch(url, asking(session))).body.getReader()
  give(1)
  const begun = await take(reader, 100)
  line.isDown = true
  line.cut()
  await assert.rejects(reader.read(), TypeError)
  assert.ok(fetch.pending(session).length)
  line.isDown = false
  give(10)
  const rest = await fetch("", resuming(session))
  assert.deepEqual(Buffer.concat([begun, (await drain(rest.body)).bytes]), BYTES)
})

test("a connection that hangs is replaced", async () => {
  const { turn, give } = turns()
  const { url } = await vendor(says(inPieces(100), { turn }))
  const line = await wire(PROXY)
  const reader = (await open(line.url, { patience: { stallSeconds: 0.5 } })(url, asking(freshSession()))).body.getReader()
  give(1)
  const begun = await take(reader, 100)
  const asked = take(reader, 500)
  line.isHeld = true
  const { connections } = line
  await until(() => line.connections > connections)
  line.isHeld = false
  line.cut()
  give(10)
  assert.deepEqual(Buffer.concat([begun, await asked]), BYTES)
})

test("where something on the way keeps events back, long polls take over", async () => {
  const { turn, give } = turns()
  const { url } = await vendor(says(inPieces(100), { turn }))
  const line = await wire(PROXY, { holdsEvents: true })
  const response = await open(line.url, { patience: { stallSeconds: 0.5 } })(url, asking(freshSession()))
  const whole = drain(response.body)
  for (let number = 0; number < 7; number++) {
    give()
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  assert.deepEqual(await whole, { bytes: BYTES, error: null })
})

test("W9, W22: reads are signed, expired signatures are renewed with the key, and without it they are an error", async () => {
  const { turn, give } = turns()
  const { url } = await vendor(says(inPieces(200), { turn }))
  let isForgotten = false
  const auth = () => (isForgotten ? {} : { "Streamkeep-Key": PROXY_KEY })
  const session = freshSession()
  const fetch = open(KEYED_URL, { auth })
  const reader = (await fetch(url, asking(session))).body.getReader()
  const [made] = await fetch.active(session)
  const unsigned = new URL(made.streamUrl)
  unsigned.searchParams.delete("signature")
  assert.equal((await globalThis.fetch(unsigned)).status, 401)
  const expired = () => until(async () => (await globalThis.fetch(made.streamUrl)).status === 401)
  give()
  assert.deepEqual(await take(reader, 200), BYTES.subarray(0, 200))
  await expired()
  const asked = take(reader, 200)
  give()
  assert.deepEqual(await asked, BYTES.subarray(200, 400))
  isForgotten = true
  await assert.rejects(reader.read(), { status: 401 })
  assert.equal((await open(KEYED_URL)(url, asking(freshSession()))).status, 401)
})

test("an answer that says nothing while its URL expires again and again is read on", async () => {
  const { turn, give } = turns()
  const { url } = await vendor(says([BYTES], { turn }))
  const session = freshSession()
  const fetch = open(KEYED_URL, { auth: () => ({ "Streamkeep-Key": PROXY_KEY }) })
  const whole = drain((await fetch(url, asking(session))).body)
  // The reader's own URLs end no later than the first two of these.
  for (let number = 0; number < 3; number++) {
    const [{ streamUrl }] = await fetch.active(session)
    await until(async () => (await globalThis.fetch(streamUrl)).status === 401)
  }
  give(2)
  assert.deepEqual(await whole, { bytes: BYTES, error: null })
})

test("W22: a generation that is deleted under its reader errors the body", async () => {
  const { turn, give } = turns()
  const { url } = await vendor(says(inPieces(100), { turn }))
  const session = freshSession()
  const reader = (await open(PROXY)(url, asking(session))).body.getReader()
  give(1)
  await take(reader, 100)
  const refused = assert.rejects(reader.read(), { status: 410 })
  assert.ok((await globalThis.fetch(`${PROXY}/api/${session}`, { method: "DELETE" })).ok)
  await refused
})
