// Streams of the open protocol: the list, kept up by the registry, so that what anybody makes appears by itself.

import { follow, get, request, streamPath } from "./api.js"
import { debounced, dialog, empty, every, field, h, pill, table, tell, tellError, throttled } from "./dom.js"
import { age, moment, size, visible } from "./format.js"

const LIMIT = 100
const TYPES = [["text/plain; charset=utf-8", "Text"], ["application/json", "JSON messages"], ["application/octet-stream", "Binary"]]

export function streamAddress(path) {
  return `#/stream/${encodeURIComponent(path)}`
}

export async function showStreams(main, { signal }) {
  let prefix = ""
  let after = ""
  let next = null
  const back = []
  let rows = []
  let asked = 0
  const search = h("input", { type: "search", placeholder: "What paths begin with", "aria-label": "Search streams" })
  const list = h("div", { class: "list" })
  const first = h("button", { type: "button", on: { click: () => { after = back.pop() ?? ""; refresh() } } }, "Back")
  const more = h("button", { type: "button", on: { click: () => { back.push(after); after = next; refresh() } } }, "More")
  const make = h("button", { type: "button", class: "primary", on: { click: () => create() } }, "New stream")
  search.addEventListener("input", debounced(() => { prefix = search.value; after = ""; back.length = 0; refresh() }))

  async function refresh() {
    const mine = ++asked
    try {
      const page = await get("/api/streams", { prefix, after, limit: LIMIT }, { signal })
      if (mine !== asked || signal.aborted) return
      next = page.next
      rows = page.streams.filter(({ path }) => !isServers(path))
      draw()
    } catch (error) {
      if (!signal.aborted) tellError(error)
    }
  }

  function draw() {
    first.disabled = after === ""
    more.disabled = next === null
    const focused = list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null
    const none = prefix ? empty("No stream begins like that", "Try fewer letters.") : empty("No streams yet", "Make one here, or with any client of the open protocol; it appears by itself.")
    list.replaceChildren(rows.length ? table("Streams", ["Path", "Content type", "Bytes", "State", "Age", "Ends"], rows.map(row)) : none)
    if (focused) [...list.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus()
  }

  main.replaceChildren(h("div", { class: "head" }, h("h1", {}, "Streams"), h("div", { class: "actions" }, make)), h("div", { class: "toolbar" }, search), list, h("div", { class: "pager" }, first, more))
  await request(streamPath("__registry__"), { method: "HEAD", signal }).catch(() => {})
  await refresh()
  follow(streamPath("__registry__"), { offset: "now", signal, onData: throttled(refresh, 300, signal) }).catch(() => {})
  // The registry does not tell of appends.
  every(5000, signal, refresh)
}

/** Whether it is one of the server's own, such as the registry: those are for programs. */
function isServers(path) {
  return path.startsWith("__")
}

function row(stream) {
  return h(
    "tr",
    {},
    h("td", { class: "name" }, h("a", { href: streamAddress(stream.path) }, visible(stream.path))),
    h("td", { data: { label: "Type" } }, stream.contentType),
    h("td", { data: { label: "Bytes" } }, size(stream.bytes)),
    h("td", { data: { label: "State" } }, stream.isClosed ? pill("done", "closed") : pill("running", "open")),
    h("td", { data: { label: "Age" }, title: moment(stream.createdAt) }, age(stream.createdAt)),
    h("td", { data: { label: "Ends" } }, ends(stream)),
  )
}

export function ends({ ttlSeconds, expiresAt }) {
  if (ttlSeconds) return `${ttlSeconds} s after its last use`
  return expiresAt ? moment(expiresAt) : "–"
}

/** Ask for a new stream, or with `source` for a fork of one, and make it. */
export async function create(source = null) {
  const path = h("input", { name: "path", required: true, autocomplete: "off", spellcheck: "false", placeholder: "notes/today", value: source ? `${source}-fork` : "" })
  const type = h("select", { name: "type" }, TYPES.map(([value, name]) => h("option", { value }, name)))
  const content = [
    field("Path", path),
    source ? field("Up to offset", h("input", { name: "offset", placeholder: "its tail", autocomplete: "off" })) : field("Holds", type),
    h("div", { class: "pair" }, field("Ends unused for, s", h("input", { name: "ttl", type: "number", min: 1 })), field("Or ends at", h("input", { name: "expires", type: "datetime-local" }))),
    source ? null : field("First content", h("textarea", { name: "content", rows: 3 })),
    h("label", { class: "check" }, h("input", { name: "closed", type: "checkbox" }), " Closed: nothing comes after this"),
  ]
  const values = await dialog(source ? "Fork this stream" : "New stream", content, {
    confirm: source ? "Fork" : "Create",
    act: async (form) => {
      const headers = {}
      if (!source) headers["Content-Type"] = form.get("type")
      if (source) headers["Stream-Forked-From"] = streamPath(source)
      if (form.get("offset")) headers["Stream-Fork-Offset"] = form.get("offset")
      if (form.get("ttl")) headers["Stream-TTL"] = form.get("ttl")
      if (form.get("expires")) headers["Stream-Expires-At"] = new Date(form.get("expires")).toISOString()
      if (form.get("closed")) headers["Stream-Closed"] = "true"
      await request(streamPath(form.get("path")), { method: "PUT", headers, body: form.get("content") || undefined })
    },
  })
  if (!values) return
  tell(source ? "Forked" : "Created")
  location.hash = streamAddress(values.get("path"))
}
