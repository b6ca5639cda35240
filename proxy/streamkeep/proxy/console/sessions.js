// Sessions: chats, by what happened in them last.

import { get } from "./api.js"
import { debounced, empty, every, h, pill, setText, table } from "./dom.js"
import { age, moment } from "./format.js"

export async function showSessions(main, { query, signal, me }) {
  let q = query.get("q") ?? ""
  let before = ""
  let next = null
  const back = []
  const search = h("input", { type: "search", value: q, placeholder: "Session, request or upstream", "aria-label": "Search sessions" })
  const list = h("div", { class: "list" })
  const newer = h("button", { type: "button", on: { click: () => { before = back.pop() ?? ""; refresh() } } }, "Newer")
  const older = h("button", { type: "button", on: { click: () => { back.push(before); before = next; refresh() } } }, "Older")
  search.addEventListener("input", debounced(() => { q = search.value; before = ""; back.length = 0; refresh() }))
  let shown = ""

  async function refresh() {
    const page = await get("/api/sessions", { q, before, limit: 100 }, { signal })
    next = page.next
    newer.disabled = before === ""
    older.disabled = next === null
    const text = JSON.stringify(page.sessions)
    if (text === shown) return refreshAges()
    shown = text
    const focused = list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null
    list.replaceChildren(page.sessions.length ? table("Sessions", ["Session", "Generations", "Running", "Last", "First"], page.sessions.map(row)) : empty(q ? "Nothing here fits" : "No sessions yet", q ? "Try fewer letters." : "A session begins with its first generation."))
    if (focused) [...list.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus()
  }

  function refreshAges() {
    for (const cell of list.querySelectorAll("[data-instant]")) setText(cell, age(cell.dataset.instant))
  }

  function row(session) {
    const address = `#/generations?session=${encodeURIComponent(session.sessionId)}${me.isOperator ? `&tenant=${encodeURIComponent(session.tenant)}` : ""}`
    return h(
      "tr",
      {},
      h("td", { class: "name" }, h("a", { href: address }, session.sessionId), session.tenant !== me.tenant && h("small", { class: "tenant" }, session.tenant)),
      h("td", { data: { label: "Generations" } }, String(session.generations)),
      h("td", { data: { label: "Running" } }, session.live ? pill("running", String(session.live)) : "–"),
      h("td", { data: { label: "Last", instant: session.lastAt }, title: moment(session.lastAt) }, age(session.lastAt)),
      h("td", { data: { label: "First", instant: session.firstAt }, title: moment(session.firstAt) }, age(session.firstAt)),
    )
  }

  main.replaceChildren(h("div", { class: "head" }, h("h1", {}, "Sessions")), h("div", { class: "toolbar" }, search), list, h("div", { class: "pager" }, newer, older))
  await refresh()
  every(3000, signal, () => refresh().catch(() => {}))
}
