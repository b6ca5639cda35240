// The list of generations: what runs, and what ran; one page at a time, however many there are.

import { get } from "./api.js"
import { debounced, empty, every, h, pill, setText, table, tellError } from "./dom.js"
import { age, duration, rate, size, tokens } from "./format.js"
import { stopButton } from "./generation.js"

const LIMIT = 100
const STATES = [["", "All"], ["live", "Running"], ["done", "Done"], ["error", "Failed"], ["cancelled", "Stopped"], ["refused", "Refused"]]

export function address(row) {
  return `#/generation/${[row.tenant, row.sessionId, row.requestId].map(encodeURIComponent).join("/")}`
}

export async function showGenerations(main, { query, signal, me }) {
  const wanted = { q: query.get("q") ?? "", state: query.get("state") ?? "", session: query.get("session") ?? "", tenant: query.get("tenant") ?? "" }
  const back = []
  let before = ""
  let next = null
  const rows = new Map()

  const search = h("input", { type: "search", value: wanted.q, placeholder: "Session, request or upstream", "aria-label": "Search generations" })
  const states = h("div", { class: "modes", role: "group", "aria-label": "State" })
  const list = h("div", { class: "list" })
  const newer = h("button", { type: "button" }, "Newer")
  const older = h("button", { type: "button" }, "Older")
  const counted = h("p", { class: "count", role: "status" })

  for (const [state, name] of STATES) {
    states.append(h("button", { type: "button", "aria-pressed": String(state === wanted.state), on: { click: () => choose({ state }) } }, name))
  }
  search.addEventListener("input", debounced(() => choose({ q: search.value })))
  newer.addEventListener("click", () => { before = back.pop() ?? ""; refresh() })
  older.addEventListener("click", () => { back.push(before); before = next; refresh() })

  function choose(change) {
    Object.assign(wanted, change)
    before = ""
    back.length = 0
    for (const [index, [state]] of STATES.entries()) states.children[index].setAttribute("aria-pressed", String(state === wanted.state))
    const text = new URLSearchParams(Object.entries(wanted).filter(([, value]) => value)).toString()
    history.replaceState(null, "", `#/generations${text && `?${text}`}`)
    refresh()
  }

  const frame = table("Generations", ["State", "Session and request", "Upstream", "Age", "Chunks/s", "Bytes", "Usage", "Readers", "Owner", ""], [])
  const body = frame.querySelector("tbody")
  let asked = 0

  async function refresh() {
    const mine = ++asked
    try {
      const page = await get("/api/generations", { ...wanted, before, limit: LIMIT }, { signal })
      if (mine !== asked || signal.aborted) return
      next = page.next
      fill(page.generations)
    } catch (error) {
      if (signal.aborted || mine !== asked) return
      if (!rows.size) list.replaceChildren(empty("The list cannot be read", error.message))
      else tellError(error)
    }
  }

  function fill(found) {
    const kept = new Set(found.map(address))
    for (const [id, row] of rows) if (!kept.has(id)) { row.element.remove(); rows.delete(id) }
    let at = body.firstElementChild
    for (const generation of found) {
      const id = address(generation)
      const row = rows.get(id) ?? makeRow(generation, me)
      rows.set(id, row)
      row.update(generation)
      if (row.element === at) at = at.nextElementSibling
      else body.insertBefore(row.element, at)
    }
    newer.disabled = before === ""
    older.disabled = next === null
    const running = found.filter(isLive).length
    setText(counted, found.length ? `${found.length} shown${running ? `, ${running} running` : ""}` : "")
    if (found.length) {
      if (!frame.isConnected) list.replaceChildren(frame)
    } else if (wanted.q || wanted.state || wanted.session) {
      list.replaceChildren(empty("Nothing here fits", next ? "Not among the newest. There may be more: go on with Older." : "Try fewer letters, or another state."))
    } else {
      list.replaceChildren(empty("No generations yet", "Send a request through the proxy, and it appears here at once:", h("pre", {}, `curl -X POST ${location.origin}/api/my-chat/1 -H 'X-Proxy-Url: …' -d '{}'`)))
    }
  }

  main.replaceChildren(
    h("div", { class: "head" }, h("h1", {}, wanted.session ? `Session ${wanted.session}` : "Generations"), counted),
    h("div", { class: "toolbar" }, search, states),
    list,
    h("div", { class: "pager" }, newer, older),
  )
  await refresh()
  every(2000, signal, refresh)
}

export function isLive({ state }) {
  return state === "creating" || state === "running"
}

/** A cell's text; where columns have no room, one without anything to say is left out. */
function put(cell, text) {
  setText(cell, text)
  cell.classList.toggle("none", text === "–")
}

function makeRow(generation, me) {
  const cells = Object.fromEntries(["state", "upstream", "age", "chunks", "bytes", "usage", "readers", "owner", "act"].map((name) => [name, h("td", { class: name })]))
  const labels = { upstream: "Upstream", age: "Age", chunks: "Chunks/s", bytes: "Bytes", usage: "Usage", readers: "Readers", owner: "Owner" }
  for (const [name, label] of Object.entries(labels)) cells[name].dataset.label = label
  const isForeign = me && generation.tenant !== me.tenant
  const name = h(
    "td",
    { class: "name" },
    h("a", { href: address(generation) }, h("span", {}, generation.sessionId), h("span", { class: "dim" }, ` / ${generation.requestId}`)),
    isForeign && h("small", { class: "tenant" }, generation.tenant),
  )
  const element = h("tr", {}, cells.state, name, cells.upstream, cells.age, cells.chunks, cells.bytes, cells.usage, cells.readers, cells.owner, cells.act)
  let last = null
  return {
    element,
    update(row) {
      const shown = row.code && row.state === "error" ? row.code : row.state
      if (cells.state.textContent !== shown) cells.state.replaceChildren(pill(row.state, shown))
      put(cells.upstream, row.upstream ?? "–")
      put(cells.age, age(row.createdAt))
      cells.age.title = row.endedAt ? `took ${duration(Date.parse(row.endedAt) - Date.parse(row.createdAt))}` : ""
      const now = performance.now()
      if (row.chunks !== null && last?.chunks != null && now - last.at > 500) put(cells.chunks, rate(((row.chunks - last.chunks) * 1000) / (now - last.at)))
      else if (row.chunks === null || !last) put(cells.chunks, "–")
      if (!last || now - last.at > 500) last = { chunks: row.chunks, at: now }
      put(cells.bytes, size(row.bytes))
      put(cells.usage, tokens(row.usage))
      put(cells.readers, row.readers ? String(row.readers) : "–")
      put(cells.owner, row.owner ? (row.owner.isHere ? "this process" : `process ${row.owner.id}`) : "–")
      if (isLive(row) !== Boolean(cells.act.firstChild)) cells.act.replaceChildren(...(isLive(row) ? [stopButton(row)] : []))
    },
  }
}
