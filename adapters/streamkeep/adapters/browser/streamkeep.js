// A `fetch` whose responses survive: the proxy calls upstream once and records the answer, and bodies are read from that
// record. A mark in the storage, from before a request is sent until its end was given out, leads pages to it.

const ID = /^[^\W_][\w.~:@-]{0,199}$/

export class GenerationError extends Error {
  constructor({ code, message, retryable = false }, { sessionId, requestId }) {
    super(message)
    this.name = code === "cancelled" ? "AbortError" : "GenerationError"
    Object.assign(this, { code, retryable, sessionId, requestId })
  }
}

function proxyError(message, more) {
  return Object.assign(new Error(message), { name: "ProxyError", ...more })
}

export function createFetchClient({ proxyUrl, auth = {}, storage = quietly(() => localStorage), patience = {} }) {
  const { sendSeconds = 30, silenceSeconds = 120, stallSeconds = 45 } = patience
  const { origin, pathname } = new URL(proxyUrl, globalThis.location)
  const base = origin + pathname.replace(/\/*(\/api)?\/*$/, "")
  const marks = marksIn(storage, `streamkeep/generation/${base}/`)

  // The proxy's own credentials go to its origin alone.
  async function ask(url, { headers, ...init }) {
    const sent = new Headers(headers)
    if (new URL(url).origin === origin) {
      const ours = new Headers(typeof auth === "function" ? await auth() : auth)
      if (ours.has("Authorization")) throw new Error("Authorization is upstream's")
      ours.forEach((value, name) => sent.set(name, value))
    }
    return fetch(url, { cache: "no-store", redirect: "error", ...init, headers: sent })
  }

  async function get(url, init) {
    const response = await ask(url, init)
    if (!response.ok) throw await refusal(response)
    return response
  }

  const api = (path) => [base, "api", ...path.map(encodeURIComponent)].join("/")

  const look = (path, init) =>
    repeatedly(outageWithin(sendSeconds, init.signal), async () => {
      try {
        return await (await get(api(path), init)).json()
      } catch (error) {
        if (error.status !== 404 && error.status !== 410) throw error
      }
    })

  const find = ({ sessionId, requestId }, signal) => look([sessionId, requestId], { signal })
  const active = async (sessionId, signal) => (await look([sessionId, "active"], { signal })) ?? []
  const cancel = async (sessionId, requestId) =>
    (await look([sessionId, requestId, "cancel"], { method: "POST", keepalive: true }))?.state

  async function stop(mark, creating) {
    mark.save({ isStopped: true })
    const { sessionId, requestId } = mark
    try {
      if (!(await cancel(sessionId, requestId)) && (await creating)) await cancel(sessionId, requestId)
      mark.remove()
    } catch {}
  }

  async function durableFetch(input, init = {}) {
    const signal = init.signal ?? input?.signal
    signal?.throwIfAborted()
    const asked = steering(new Headers(init.headers ?? input?.headers))
    return asked.resumes ? resume(asked, signal) : send(asked, signal, input, init)
  }

  async function send({ sessionId = crypto.randomUUID(), requestId = crypto.randomUUID() }, signal, input, init) {
    const request = new Request(input, init)
    if (request.credentials === "include") throw new TypeError("the proxy passes no cookies on")
    const { headers } = request
    steering(headers)
    headers.set("X-Proxy-Url", request.url)
    headers.set("X-Proxy-Method", request.method)
    const { duplex } = init
    const body = duplex ? request.body : await request.blob()
    const sent = { method: "POST", headers, body: duplex || body.size ? body : null, duplex }
    const mark = marks.of(sessionId, requestId)
    mark.save({ position: 0 })
    // A repeat has the same ids, and so joins what an earlier attempt began.
    const creating = repeatedly(outageWithin(duplex ? 0 : sendSeconds, signal), async () => {
      const response = await ask(api([sessionId, requestId]), sent)
      if (response.ok || response.headers.has("Upstream-Status")) return response
      throw Object.assign(await refusal(response.clone()), { response })
    }).catch((error) => error.response ?? Promise.reject(error))
    const response = await unlessAborted(signal, creating).catch((error) => {
      if (signal?.aborted) stop(mark, creating)
      throw error
    })
    if (response.ok) return answer(await response.json(), mark, 0, signal)
    // After a 5xx of the proxy's own upstream may have been called.
    if (response.status < 500 || response.headers.has("Upstream-Status")) mark.remove()
    return response
  }

  async function resume({ sessionId, requestId, replays, ttlMs }, signal) {
    if (!sessionId) throw new TypeError("a resume needs X-Session-ID")
    const stopped = []
    for (const mark of marks.all(sessionId)) {
      const { isStopped, at } = mark.read()
      if (isStopped) {
        stopped.push(mark.requestId)
        await stop(mark)
      } else if (!(Date.now() - at <= ttlMs)) mark.remove()
    }
    let found = await sought(sessionId, requestId, stopped, signal)
    while (found?.state === "creating") {
      await sleep(300, signal)
      found = await find(found, signal)
    }
    if (!found) return new Response(null, { status: 204, headers: { "X-Session-ID": sessionId } })
    const mark = marks.of(sessionId, found.requestId)
    if (!found.upstreamStatus) {
      mark.remove()
      throw new GenerationError({ code: found.code, message: "upstream never answered" }, found)
    }
    const { position } = mark.read()
    const start = !replays && /^\d+$/.test(position) ? Number(position) : 0
    mark.save({ position: start })
    return answer(found, mark, start, signal)
  }

  // The one that is named, or the newest that runs, or the very newest if it was not read to its end here before.
  async function sought(sessionId, requestId, stopped, signal) {
    const [mark] = marks.all(sessionId)
    const listed = requestId ? [] : await active(sessionId, signal)
    const running = listed.find((one) => /creating|running/.test(one.state) && !stopped.includes(one.requestId))
    const named = running?.requestId ?? requestId ?? listed[0]?.requestId ?? mark?.requestId
    const isWanted = named === requestId || running || marks.of(sessionId, named).read().position >= 0
    if (named && isWanted) return find({ sessionId, requestId: named }, signal)
  }

  function answer({ upstreamStatus: status, contentType, upstreamHeaders, ...found }, mark, start, signal) {
    const headers = new Headers(upstreamHeaders)
    if (contentType) headers.set("Content-Type", contentType)
    if (headers.has("X-Request-ID")) headers.set("Upstream-Request-ID", headers.get("X-Request-ID"))
    headers.set("X-Session-ID", mark.sessionId)
    headers.set("X-Request-ID", mark.requestId)
    headers.set("Streamkeep-Start-Offset", start)
    if ([204, 205, 304].includes(status)) {
      mark.remove()
      return new Response(null, { status, headers })
    }
    const proxy = { get, find, stop, outage: outageWithin(silenceSeconds, signal), stallMs: stallSeconds * 1000 }
    let body = bodyOf(found, mark, start, proxy, signal)
    // Upstream was asked for none, but may not care. The middle of one cannot be decoded.
    const encoding = headers.get("Content-Encoding")
    if (!start && /^(gzip|deflate)$/.test(encoding)) body = body.pipeThrough(new DecompressionStream(encoding))
    return new Response(body, { status, headers })
  }

  return Object.assign(durableFetch, {
    active,
    cancel,
    pending: (sessionId) => marks.all(sessionId).filter((mark) => !mark.read().isStopped).map((mark) => mark.requestId),
    forget: (sessionId) => marks.all(sessionId).forEach((mark) => mark.remove()),
  })
}

// A generation's bytes from `given` on. Asking for a piece says that those before it were taken.
function bodyOf(found, mark, given, { get, find, stop, outage, stallMs }, signal) {
  const pieces = []
  let received = given
  let connection
  let controller
  let barren = 0
  let isClosed = false
  let isLeft = false
  let isRenewed = false

  const disconnect = () => {
    connection?.close()
    connection = undefined
  }

  const open = (url, parameters) => {
    const full = new URL(url)
    full.searchParams.set("offset", `${"0".repeat(16)}_${String(received).padStart(16, "0")}`)
    for (const [name, value] of Object.entries(parameters)) full.searchParams.set(name, value)
    disconnect()
    connection = connectionWithin(stallMs)
    return connection.within(get(full, { signal: connection.signal }))
  }

  // Bytes before position `end`: what was had is cut off, and a gap could be filled by nothing later.
  const receive = (bytes, end) => {
    const from = end - bytes.length
    if (!(from <= received)) throw proxyError(`a gap from ${received} to ${from}`)
    if (end <= received) return
    pieces.push(bytes.subarray(received - from))
    received = end
    outage.heard(true)
  }

  const readEvents = async () => {
    if (!connection) {
      const { body } = await open(found.streamUrl, { live: "sse", encoding: "base64" })
      Object.assign(connection, { reader: body.getReader(), decode: eventDecoder(), isBarren: true })
    }
    const { done, value } = await connection.within(connection.reader.read())
    if (done) throw new TypeError("it broke off")
    outage.heard()
    for (const { event, id, data } of connection.decode(value)) {
      barren = 0
      connection.isBarren = false
      if (event === "data") receive(bytesOf(data), positionOf(id))
      if (event === "control") isClosed = JSON.parse(data).streamClosed
    }
  }

  const readByLongPoll = async () => {
    const { headers, body } = await open(found.streamUrl, { live: "long-poll" })
    for (const reader = body?.getReader(); reader; ) {
      const { done, value } = await connection.within(reader.read())
      if (done) break
      receive(value, received + value.length)
    }
    outage.heard()
    isClosed = headers.has("Stream-Closed")
  }

  const readEnd = async () => {
    const response = await open(found.controlUrl, { offset: "-1" })
    const [ending] = await connection.within(response.json())
    if (!ending) throw new TypeError("no end is told")
    if (positionOf(ending.offset) !== received) throw proxyError(`the data ended at ${received}`)
    if (ending.event !== "done") throw new GenerationError(ending, found)
  }

  const next = async () => {
    while (!pieces.length && !isLeft) {
      try {
        if (isClosed) return await readEnd()
        await (barren < 2 ? readEvents() : readByLongPoll())
        isRenewed = false
      } catch (error) {
        // Live reads begin with an event: where none arrives, something on the way keeps them back.
        if (connection?.isBarren) barren++
        disconnect()
        // An expired URL is renewed; once, until it was good for something.
        if (error.status === 401 && !isRenewed) found = (isRenewed = true) && (await find(found, signal))
        else await outage.pause(error)
        if (!found) throw error
      }
    }
    return pieces.shift()
  }

  const leave = () => {
    isLeft = true
    signal?.removeEventListener("abort", aborted)
    disconnect()
  }

  const aborted = () => {
    leave()
    controller.error(signal.reason)
    stop(mark)
  }

  const pull = async () => {
    try {
      outage.heard()
      if (mark.read().position >= 0) mark.save({ position: given })
      const piece = await next()
      if (isLeft) return
      if (piece) {
        given += piece.length
        return controller.enqueue(piece)
      }
      mark.remove()
      controller.close()
    } catch (error) {
      if (isLeft) return
      // A 400 says that the mark was wrong.
      if (error instanceof GenerationError || error.status === 400) mark.remove()
      controller.error(error)
    }
    leave()
  }

  const source = { start: (made) => (controller = made), pull, cancel: leave }
  const stream = new ReadableStream(source, { highWaterMark: 0 })
  signal?.addEventListener("abort", aborted)
  if (signal?.aborted) aborted()
  return stream
}

// It is cut when not even a heartbeat comes, and when the page is back: what was open may be dead.
export function connectionWithin(stallMs) {
  const abort = new AbortController()
  const cut = (message) => abort.abort(new TypeError(message))
  let heardAt = performance.now()
  const unsubscribe = onReturn(() => performance.now() - heardAt > 2000 && cut("it was away"))
  return {
    signal: abort.signal,
    async within(promise) {
      const clock = setTimeout(() => {
        this.isBarren ??= true
        cut("nothing came")
      }, stallMs)
      try {
        return await promise
      } catch (error) {
        throw abort.signal.reason ?? error
      } finally {
        clearTimeout(clock)
        heardAt = performance.now()
      }
    },
    close() {
      unsubscribe()
      cut()
    },
  }
}

export function outageWithin(limitSeconds, signal) {
  let silenceMs = 0
  let failures = 0
  let since = performance.now()
  const heard = (isProgress) => {
    const now = performance.now()
    if (isProgress || now - since > 1000) failures = 0
    silenceMs = 0
    since = now
  }
  const pause = async (error) => {
    signal?.throwIfAborted()
    const now = performance.now()
    silenceMs += Math.min(now - since, 60_000)
    since = now
    if (!(error instanceof TypeError || error.isTransient) || silenceMs >= limitSeconds * 1000) throw error
    // At random, so that those who were cut off together come back apart.
    const mostMs = failures && Math.min(5000, 100 * 2 ** failures)
    failures++
    if (await sleep(Math.max(error.retryAfterMs ?? 0, Math.random() * mostMs), signal)) heard(true)
  }
  return { heard, pause }
}

export async function repeatedly(outage, attempt) {
  for (;;) {
    try {
      return await attempt()
    } catch (error) {
      await outage.pause(error)
    }
  }
}

export function eventDecoder() {
  const decoder = new TextDecoder()
  let rest = ""
  return (bytes) => {
    const events = (rest + decoder.decode(bytes, { stream: true })).split("\n\n")
    rest = events.pop()
    return events.map((event) => {
      const fields = {}
      for (const line of event.split("\n")) {
        const [, name, value] = /^(\w*):? ?(.*)/s.exec(line)
        fields[name] = (fields[name] ?? "") + value
      }
      return fields
    })
  }
}

// A mark holds the `position` up to which a generation was taken, or that it `isStopped`. No storage, no marks.
function marksIn(storage, prefix) {
  const of = (sessionId, requestId) => {
    const key = `${prefix}${sessionId}/${requestId}`
    const read = () => quietly(() => JSON.parse(storage.getItem(key))) ?? {}
    const save = (found) => quietly(() => storage.setItem(key, JSON.stringify({ ...found, at: Date.now() })))
    const remove = () => quietly(() => storage.removeItem(key))
    return { sessionId, requestId, read, save, remove }
  }
  const all = (sessionId) => {
    const keys = quietly(() => Array.from({ length: storage.length }, (_, index) => storage.key(index))) ?? []
    const marks = keys.filter((key) => key.startsWith(prefix)).map((key) => of(...key.slice(prefix.length).split("/")))
    // After a week those go that nobody came back to, and what is no mark.
    for (const { read, remove } of marks) if (!(Math.abs(Date.now() - read().at) < 604_800_000)) remove()
    return marks.filter((mark) => mark.sessionId === sessionId && mark.read().at).sort((a, b) => b.read().at - a.read().at)
  }
  return { of, all }
}

function steering(headers) {
  const take = (name, form = /^/) => {
    const value = headers.get(name) ?? undefined
    headers.delete(name)
    if (value && !form.test(value)) throw new TypeError(`${name} must match ${form}`)
    return value
  }
  for (const name of ["X-Proxy-Url", "X-Proxy-Method", "Streamkeep-View"]) take(name)
  return {
    sessionId: take("X-Session-ID", ID),
    requestId: take("X-Request-ID", ID),
    resumes: (take("X-Resume-Active-Generation") ?? "false") !== "false",
    replays: take("X-Replay-From-Start") === "true",
    ttlMs: Number(take("X-Active-Generation-TTL", /^\d+$/) ?? 3_600_000),
  }
}

export async function refusal(response) {
  const { error: code, message, sessionId } = await response.json().catch(() => ({}))
  const { status, headers } = response
  const isTransient = !sessionId && (code ? /429|503/ : /429|50[234]/).test(status)
  const retryAfterMs = Number(headers.get("Retry-After")) * 1000 || 0
  return proxyError(message ?? "not the proxy's answer", { status, code, isTransient, retryAfterMs })
}

const positionOf = (offset) => Number(/^0{16}_(\d{16})$/.exec(offset)?.[1])

// `Uint8Array.from` is 30 times as slow.
function bytesOf(base64) {
  const text = atob(base64)
  const bytes = new Uint8Array(text.length)
  for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index)
  return bytes
}

function unlessAborted(signal, promise) {
  return new Promise((resolve, reject) => {
    const aborted = () => reject(signal.reason)
    signal?.addEventListener("abort", aborted)
    promise.then(resolve, reject).finally(() => signal?.removeEventListener("abort", aborted))
  })
}

function sleep(ms, signal) {
  let unsubscribe
  const over = new Promise((resolve) => {
    unsubscribe = onReturn(() => resolve(true))
    if (globalThis.navigator?.onLine !== false) setTimeout(resolve, ms)
  })
  return unlessAborted(signal, over).finally(unsubscribe)
}

function onReturn(tell) {
  const stopped = new AbortController()
  const page = globalThis.document
  globalThis.addEventListener?.("online", tell, stopped)
  page?.addEventListener("visibilitychange", () => page.visibilityState === "visible" && tell(), stopped)
  return () => stopped.abort()
}

export function quietly(action) {
  try {
    return action()
  } catch {
    return null
  }
}
