// Durable sessions: the list, with search, new names and ends.

import { get, request } from "./api.js"
import { debounced, dialog, empty, every, field, h, setText, table, tell, tellError } from "./dom.js"
import { age, moment, visible } from "./format.js"

const LIMIT = 100

export function sessionPath(sessionId, ...more) {
  return ["/v1/sessions", sessionId, ...more].map((part, index) => (index ? encodeURIComponent(part) : part)).join("/")
}

export function sessionAddress(sessionId) {
  return `#/session/${encodeURIComponent(sessionId)}`
}

export async function showDurableSessions(main, { query, signal }) {
  let search = query.get("search") ?? ""
  let before = ""
  let next = null
  let shown = ""
  let asked = 0
  const back = []
  const input = h("input", { type: "search", value: search, placeholder: "Session or name", "aria-label": "Search durable sessions" })
  const list = h("div", { class: "list" })
  const newer = h("button", { type: "button", on: { click: () => { before = back.pop() ?? ""; refresh() } } }, "Newer")
  const older = h("button", { type: "button", on: { click: () => { back.push(before); before = next; refresh() } } }, "Older")
  input.addEventListener("input", debounced(() => { search = input.value; before = ""; back.length = 0; refresh() }))

  async function refresh() {
    const mine = ++asked
    try {
      const page = await get("/v1/sessions", { search, before, limit: LIMIT }, { signal })
      if (mine !== asked || signal.aborted) return
      next = page.next
      draw(page.sessions)
    } catch (error) {
      if (!signal.aborted && mine === asked) tellError(error)
    }
  }

  function draw(sessions) {
    newer.disabled = before === ""
    older.disabled = next === null
    const text = JSON.stringify(sessions)
    if (text === shown) {
      for (const cell of list.querySelectorAll("[data-instant]")) setText(cell, age(cell.dataset.instant))
      return
    }
    shown = text
    const focused = list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null
    const none = search ? empty("Nothing here fits", "Try fewer letters.") : empty("No durable sessions yet", "One begins with a PUT, or with a chat that connects to it.")
    list.replaceChildren(sessions.length ? table("Durable sessions", ["Session", "Last", "Began", ""], sessions.map(row)) : none)
    if (focused) [...list.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus()
  }

  function row({ sessionId, name, createdAt, updatedAt }) {
    const acts = [button("Rename…", () => rename(sessionId, name)), button("Delete…", () => remove(sessionId), "danger")]
    return h(
      "tr",
      {},
      h("td", { class: "name" }, h("a", { href: sessionAddress(sessionId) }, name ?? sessionId), name && h("span", { class: "dim" }, ` ${sessionId}`)),
      h("td", { data: { label: "Last", instant: updatedAt }, title: moment(updatedAt) }, age(updatedAt)),
      h("td", { data: { label: "Began", instant: createdAt }, title: moment(createdAt) }, age(createdAt)),
      h("td", { class: "act" }, acts),
    )
  }

  function button(text, act, look = "") {
    const click = () => act().then((isDone) => isDone && refresh()).catch(tellError)
    return h("button", { type: "button", class: `small ${look}`, on: { click } }, text)
  }

  main.replaceChildren(h("div", { class: "head" }, h("h1", {}, "Durable sessions")), h("div", { class: "toolbar" }, input), list, h("div", { class: "pager" }, newer, older))
  await refresh()
  every(3000, signal, refresh)
}

/** Ask for another name; whether there is one now. */
export async function rename(sessionId, name) {
  const input = h("input", { name: "name", value: name ?? "", maxlength: 200, autocomplete: "off" })
  const values = await dialog("Another name", field("Name", input, `Of the session ${visible(sessionId)}; none where it is empty.`), {
    confirm: "Rename",
    act: (form) => patch(sessionId, form.get("name").trim() || null),
  })
  if (values) tell("Renamed")
  return values !== null
}

function patch(sessionId, name) {
  return request(sessionPath(sessionId), { method: "PATCH", body: JSON.stringify({ name }), headers: { "Content-Type": "application/json" } })
}

/** Delete, if somebody means it; whether that was so. */
export async function remove(sessionId) {
  const text = h("p", {}, h("strong", {}, visible(sessionId)), " is deleted for everybody, with all that was said in it, and cannot be had back.")
  const values = await dialog("Delete this session?", text, { confirm: "Delete", danger: true, act: () => request(sessionPath(sessionId), { method: "DELETE" }) })
  if (values) tell("Deleted")
  return values !== null
}
