// What the tests of the browser's modules stand on: a scripted vendor, a wire that can be cut, and a storage.
import { once } from "node:events"
import http from "node:http"
import net from "node:net"
import { after } from "node:test"

export const PROXY = process.env.PROXY_URL

async function listening(server) {
  server.listen(0, "127.0.0.1")
  await once(server, "listening")
  return `http://127.0.0.1:${server.address().port}`
}

/** A vendor that plays `script(exchange)`: its `url`, and every exchange so far in `calls`. */
export async function vendor(script) {
  const calls = []
  const server = http.createServer(async (request, response) => {
    const chunks = []
    for await (const chunk of request) chunks.push(chunk)
    const exchange = { request, response, body: Buffer.concat(chunks), isGone: false }
    response.on("close", () => (exchange.isGone = true))
    calls.push(exchange)
    await script(exchange)
  })
  const url = await listening(server)
  after(() => {
    server.closeAllConnections()
    server.close()
  })
  return { url, calls }
}

/** A script that sends pieces, each once `turn(number)` has resolved, and ends. */
export function says(pieces, { status = 200, headers = { "Content-Type": "application/octet-stream" }, turn } = {}) {
  return async ({ response }) => {
    response.writeHead(status, headers)
    response.flushHeaders()
    for (const [number, piece] of pieces.entries()) {
      await turn?.(number)
      response.write(piece)
    }
    await turn?.(pieces.length)
    response.end()
  }
}

/** Turns that are taken when they are given. */
export function turns() {
  const waiting = []
  let given = 0
  const turn = () => new Promise((resolve) => (given > 0 ? (given--, resolve()) : waiting.push(resolve)))
  const give = (count = 1) => {
    for (let left = count; left > 0; left--) waiting.length ? waiting.shift()() : given++
  }
  return { turn, give }
}

/**
 * A wire to the proxy. It breaks after `bytesEach` bytes of answers, gives one byte at a time (`isDribbling`), keeps back
 * event streams (`holdsEvents`), everything (`isHeld`), or is down (`isDown`); `cut` breaks what is there. It counts
 * `connections`, and requests for events as `liveReads`.
 */
export async function wire(target, { bytesEach = Infinity, isDribbling = false, holdsEvents = false } = {}) {
  const sockets = new Set()
  const cut = () => sockets.forEach((one) => one.destroy())
  const state = { isHeld: false, isDown: false, connections: 0, liveReads: 0, cut }
  const server = net.createServer((socket) => {
    if (state.isDown) return socket.destroy()
    state.connections++
    const { hostname, port } = new URL(target)
    const other = net.connect(Number(port), hostname)
    let left = bytesEach
    let asked = ""
    for (const one of [socket, other]) {
      sockets.add(one)
      one.on("error", () => {})
      one.on("close", () => {
        sockets.delete(one)
        socket.destroy()
        other.destroy()
      })
    }
    socket.on("data", (data) => {
      asked = data.toString("latin1")
      if (asked.includes("live=sse")) state.liveReads++
      if (!state.isHeld) other.write(data)
    })
    other.on("data", (data) => {
      if (state.isHeld || (holdsEvents && asked.includes("live=sse"))) return
      const passed = data.subarray(0, left)
      left -= passed.length
      const step = isDribbling ? 1 : passed.length
      for (let start = 0; start < passed.length; start += step) socket.write(passed.subarray(start, start + step))
      if (left <= 0) socket.end()
    })
    other.on("end", () => socket.end())
  })
  state.url = await listening(server)
  after(() => {
    state.cut()
    server.close()
  })
  return state
}

/** A storage of its own, as a browser's profile has one; tabs share it. */
export class MemoryStorage {
  #items = new Map()

  get length() {
    return this.#items.size
  }

  key(index) {
    return [...this.#items.keys()][index] ?? null
  }

  getItem(key) {
    return this.#items.get(key) ?? null
  }

  setItem(key, value) {
    this.#items.set(key, String(value))
  }

  removeItem(key) {
    this.#items.delete(key)
  }

  clear() {
    this.#items.clear()
  }
}

/** Wait until something holds. */
export async function until(holds, what = String(holds)) {
  const deadline = performance.now() + 45_000
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`never: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

/** What a reader gets: all bytes, and how it ended. */
export async function drain(body) {
  const chunks = []
  try {
    for await (const chunk of body) chunks.push(chunk)
    return { bytes: Buffer.concat(chunks), error: null }
  } catch (error) {
    return { bytes: Buffer.concat(chunks), error }
  }
}

/** Read until so many bytes have come; the reader goes on from there. */
export async function take(reader, size) {
  const chunks = []
  let found = 0
  while (found < size) {
    const { done, value } = await reader.read()
    if (done) break
    chunks.push(value)
    found += value.length
  }
  return Buffer.concat(chunks)
}

let sessions = 0

/** A session id that no other test uses. */
export const freshSession = () => `session-${process.pid}-${++sessions}`
