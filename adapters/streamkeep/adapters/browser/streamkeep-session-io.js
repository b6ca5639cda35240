// What a durable chat does with the world: it reads its stream, keeps its fold for the next visit, and says that somebody is there.
import { connectionWithin, eventDecoder, outageWithin } from "./streamkeep.js"

const HEARTBEAT_MS = 50_000
const TYPING_MS = 3000
const WEEK_MS = 7 * 24 * 3_600_000

/**
 * A stream's messages in batches, each with the offset after it, through whatever happens to connections. It ends with the
 * stream; `onAway` hears of outages. Throws what cannot be helped: a refusal, or a silence that was too long.
 */
export async function* batchesOf({ get, url, offset, silenceSeconds, stallSeconds, signal, onAway }) {
  const outage = outageWithin(silenceSeconds, signal)
  let connection
  let cursor
  let barren = 0
  let isClosed = false
  const close = () => connection?.close()
  signal.addEventListener("abort", close)

  const open = (live) => {
    const full = new URL(url)
    const query = { offset, live, ...(cursor && { cursor }) }
    for (const [name, value] of Object.entries(query)) full.searchParams.set(name, value)
    close()
    connection = connectionWithin(stallSeconds * 1000)
    return connection.within(get(full, { signal: connection.signal }))
  }

  const batch = (events, next, isUpToDate) => {
    offset = next
    outage.heard(true)
    return { events, offset, isUpToDate }
  }

  async function* readEvents() {
    const { body } = await open("sse")
    Object.assign(connection, { isBarren: true })
    const reader = body.getReader()
    const decode = eventDecoder()
    let events = []
    for (;;) {
      const { done, value } = await connection.within(reader.read())
      // Servers end long connections in good order, so that clients move on.
      if (done) return void (await outage.pause(new TypeError("it ended")))
      outage.heard()
      for (const { event, data } of decode(value)) {
        barren = 0
        connection.isBarren = false
        // Several lines of data are one JSON text.
        if (event === "data") events = events.concat(JSON.parse(data))
        if (event !== "control") continue
        const { streamNextOffset, streamCursor, upToDate, streamClosed } = JSON.parse(data)
        cursor = streamCursor
        isClosed = Boolean(streamClosed)
        yield batch(events, streamNextOffset, Boolean(upToDate))
        events = []
      }
    }
  }

  async function* readByLongPoll() {
    const response = await open("long-poll")
    const events = response.status === 204 ? [] : await connection.within(response.json())
    const { headers } = response
    cursor = headers.get("Stream-Cursor")
    isClosed = headers.has("Stream-Closed")
    yield batch(events, headers.get("Stream-Next-Offset"), headers.has("Stream-Up-To-Date"))
  }

  try {
    while (!isClosed) {
      try {
        yield* barren < 2 ? readEvents() : readByLongPoll()
      } catch (error) {
        // Live reads begin with an event: where none arrives, something on the way keeps them back.
        if (connection?.isBarren) barren++
        signal.throwIfAborted()
        onAway(error)
        await outage.pause(error)
      }
    }
  } finally {
    signal.removeEventListener("abort", close)
    close()
  }
}

/** Folds of sessions in the browser's database, for a week after they were last saved. Without a database, nothing is kept. */
export function foldsInDatabase() {
  if (!globalThis.indexedDB) return null
  let opened
  const database = () => (opened ??= openDatabase())
  const within = async (mode, act) => {
    const transaction = (await database()).transaction("folds", mode)
    return settled(act(transaction.objectStore("folds")))
  }
  return {
    load: async (key) => (await within("readonly", (folds) => folds.get(key)))?.value,
    save: (key, value) => within("readwrite", (folds) => folds.put({ value, at: Date.now() }, key)),
    remove: (key) => within("readwrite", (folds) => folds.delete(key)),
  }
}

async function openDatabase() {
  const request = indexedDB.open("streamkeep-sessions", 1)
  request.onupgradeneeded = () => request.result.createObjectStore("folds").createIndex("at", "at")
  const database = await settled(request)
  // Another page may want to change or delete it.
  database.onversionchange = () => database.close()
  const folds = database.transaction("folds", "readwrite").objectStore("folds")
  const old = await settled(folds.index("at").getAllKeys(IDBKeyRange.upperBound(Date.now() - WEEK_MS)))
  for (const key of old) folds.delete(key)
  return database
}

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}

/**
 * Says that somebody is there, every 50 s and when asked to, until it is stopped. `tell(presence)` and `leave()` write; what they
 * cannot write is said by the next beat.
 */
export function beating({ tell, leave }) {
  const page = globalThis.document
  const stopped = new AbortController()
  const status = () => (page?.visibilityState === "hidden" ? "away" : "online")
  let said = Promise.resolve()
  let isLeft = false
  const say = () => {
    if (!isLeft) said = said.then(() => tell({ status: status() })).catch(() => {})
  }
  const goodbye = () => {
    isLeft = true
    return leave().catch(() => {})
  }
  // A page may come back as it was.
  const back = ({ persisted }) => {
    if (!persisted) return
    isLeft = false
    say()
  }
  const clock = setInterval(say, HEARTBEAT_MS)
  clock.unref?.()
  page?.addEventListener("visibilitychange", say, stopped)
  globalThis.addEventListener?.("pagehide", goodbye, stopped)
  globalThis.addEventListener?.("pageshow", back, stopped)
  say()
  return {
    say,
    stop() {
      clearInterval(clock)
      stopped.abort()
      isLeft = true
      // Behind what is being said, which else would say the last word.
      said.then(goodbye)
    },
  }
}

/** Tells `set` when somebody begins to type, and when that is over: 3 s after the last key, or when it is said. */
export function typingFlag(set) {
  let clock
  const over = () => {
    if (clock === undefined) return
    clearTimeout(clock)
    clock = undefined
    set(false)
  }
  return (isTyping = true) => {
    if (!isTyping) return over()
    if (clock === undefined) set(true)
    clearTimeout(clock)
    clock = setTimeout(over, TYPING_MS)
    clock.unref?.()
  }
}
