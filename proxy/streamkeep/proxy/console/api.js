// The proxy's API, as everybody has it: a key, when one is needed, goes with each request and stays in this tab.

import { pause } from "./dom.js"

const KEY = "streamkeep.key"
const ROOT = new URL(".", document.baseURI).pathname.replace(/\/$/, "")

// Of answers without a body.
const MEANINGS = {
  401: "The link has expired or was changed, or the key is not good.",
  403: "That is not permitted.",
  404: "There is no such thing here, or no more.",
  410: "It was deleted, or its time was over.",
}

/** An answer that says no: `status`, `code` for machines, `message` for people. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message)
    this.status = status
    this.code = code
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
}

export function url(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "")
  const text = new URLSearchParams(given).toString()
  return ROOT + path + (text && `?${text}`)
}

/** The path of a stream of the open protocol. Throws ApiError for one that a browser would take to another route. */
export function streamPath(path) {
  if (path.split("/").some((segment) => segment === "." || segment === "..")) {
    throw new ApiError(400, "invalid_path", "A path has no segments that are . or ..")
  }
  return `/v1/stream/${path.split("/").map(encodeURIComponent).join("/")}`
}

/** Send a request; a signed query speaks for itself, and then no key goes along. Throws ApiError. */
export async function request(path, { query = {}, headers = {}, ...options } = {}) {
  const held = key.get()
  const ours = held && !query.signature ? { "Streamkeep-Key": held } : {}
  let response
  try {
    response = await fetch(url(path, query), { ...options, headers: { ...ours, ...headers }, cache: "no-store" })
  } catch (error) {
    if (error.name === "AbortError") throw error
    throw new ApiError(0, "unreachable", "The proxy does not answer. Is it running, and is the line up?")
  }
  if (response.ok) return response
  const { code, message } = await problemOf(response)
  if (response.status === 401 && !query.signature) document.dispatchEvent(new CustomEvent("locked", { detail: message }))
  throw new ApiError(response.status, code, message)
}

async function problemOf(response) {
  const text = await response.text().catch(() => "")
  try {
    const { error, message } = JSON.parse(text)
    return { code: error, message: `${message[0].toUpperCase()}${message.slice(1)}.` }
  } catch {
    return { code: "http_error", message: MEANINGS[response.status] ?? `The proxy answered ${response.status}.` }
  }
}

export async function get(path, query = {}, options = {}) {
  return (await request(path, { query, ...options })).json()
}

export async function post(path, value = undefined, query = {}) {
  const body = value === undefined ? {} : { body: JSON.stringify(value), headers: { "Content-Type": "application/json" } }
  return (await request(path, { method: "POST", query, ...body })).json()
}

/**
 * Read a stream from an offset on, through whatever happens, until it is closed or `signal` says so. `onData` gets bytes and
 * whether they are committed history; `onControl` gets each control event. Throws ApiError when there is nothing to read.
 */
export async function follow(path, { query = {}, offset = "-1", signal, onData, onControl = () => {} }) {
  let wait = 200
  while (!signal.aborted) {
    try {
      const response = await request(path, { query: { ...query, offset, live: "sse", encoding: "base64" }, signal })
      for await (const event of events(response.body)) {
        wait = 200
        if (event.name === "data") {
          offset = event.id || offset
          if ((await onData(bytesOf(event.data))) === false) return
        } else if (event.name === "control") {
          const control = JSON.parse(event.data)
          offset = control.streamNextOffset
          onControl(control)
          if (control.streamClosed) return
        }
      }
    } catch (error) {
      if (signal.aborted) return
      if (error instanceof ApiError && error.status >= 400 && error.status < 500) throw error
    }
    await pause(wait, signal)
    wait = Math.min(wait * 2, 5000)
  }
}

/** The server-sent events of a body. */
export async function* events(body) {
  let event = { name: "message", id: "", data: [] }
  for await (const line of lines(body)) {
    if (line === "") {
      if (event.data.length) yield { ...event, data: event.data.join("\n") }
      event = { name: "message", id: "", data: [] }
      continue
    }
    const colon = line.indexOf(":")
    const name = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "")
    if (name === "event") event.name = value
    else if (name === "id") event.id = value
    else if (name === "data") event.data.push(value)
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let parts = []
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      const [first, ...others] = value.split("\n")
      parts.push(first)
      for (const other of others) {
        yield parts.join("").replace(/\r$/, "")
        parts = [other]
      }
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

function bytesOf(base64) {
  const characters = atob(base64)
  const bytes = new Uint8Array(characters.length)
  for (let at = 0; at < bytes.length; at += 1) bytes[at] = characters.charCodeAt(at)
  return bytes
}
