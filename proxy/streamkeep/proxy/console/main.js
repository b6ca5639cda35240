// Which page is shown: the part of the address behind `#` names it, and each page is a module of its own.

import { get, key } from "./api.js"
import { dialog, empty, field, h, setText, tell } from "./dom.js"
import { visible } from "./format.js"
import { showDurableSessions } from "./durable.js"
import { showGeneration, showShared } from "./generation.js"
import { showGenerations } from "./generations.js"
import { showHealth } from "./health.js"
import { showKeys } from "./keys.js"
import { showSession } from "./session.js"
import { showSessions } from "./sessions.js"
import { showStream } from "./stream.js"
import { showStreams } from "./streams.js"

const PAGES = {
  generations: ["Generations", showGenerations],
  generation: ["Generation", showGeneration],
  shared: ["Shared", showShared],
  sessions: ["Sessions", showSessions],
  durable: ["Durable sessions", showDurableSessions],
  session: ["Durable session", showSession],
  streams: ["Streams", showStreams],
  stream: ["Stream", showStream],
  keys: ["Keys", showKeys],
  health: ["Health", showHealth],
}
// What is one of many stands under its list.
const LISTS = { generation: "generations", stream: "streams", session: "durable" }
const main = document.querySelector("#main")
const who = document.querySelector("#who")
let leaving = new AbortController()
let shownAt = ""

async function show() {
  if (location.hash === "#main") return main.focus()
  const [path, query] = location.hash.replace(/^#\//, "").split("?")
  const [given, ...parts] = path.split("/").map(decoded)
  const name = Object.hasOwn(PAGES, given) ? given : "generations"
  const [title, page] = PAGES[name]
  leaving.abort()
  leaving = new AbortController()
  const { signal } = leaving
  document.title = `${[title, ...parts.slice(-1).map(visible)].join(" · ")} · streamkeep`
  for (const link of document.querySelectorAll("header nav a")) {
    const isHere = link.hash === `#/${LISTS[name] ?? name}`
    if (isHere) link.setAttribute("aria-current", "page")
    else link.removeAttribute("aria-current")
  }
  main.replaceChildren(h("p", { class: "loading" }, "Loading…"))
  const isOther = shownAt && shownAt !== location.hash
  shownAt = location.hash
  try {
    const me = name === "shared" ? null : await identity()
    if (signal.aborted) return
    await page(main, { parts, query: new URLSearchParams(query), signal, me })
    if (isOther) main.focus({ preventScroll: true })
  } catch (error) {
    if (!signal.aborted && error.status !== 401) main.replaceChildren(empty("That did not work", error.message, again()))
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

function again() {
  return h("p", {}, h("button", { type: "button", on: { click: show } }, "Try again"))
}

async function identity() {
  const me = await get("/api/whoami")
  setText(who, me.isOpen ? "Development mode" : me.isOperator ? "Operator" : me.tenant)
  who.title = me.isOpen ? "No keys yet: this machine may do everything" : `Key ${me.keyId ?? "of a token"}, tenant ${me.tenant}`
  return me
}

let isAsking = false

async function askForKey(reason) {
  if (isAsking) return
  isAsking = true
  leaving.abort()
  setText(who, "Locked")
  main.replaceChildren(
    empty("This proxy wants a key", "Everything here is read with a key, as by any other client.", h("p", {}, h("button", { type: "button", class: "primary", on: { click: () => askForKey("") } }, "Give a key"))),
  )
  const input = h("input", { name: "key", type: "password", required: true, autocomplete: "off", spellcheck: "false", placeholder: "stk_…" })
  const content = [key.get() ? h("p", { class: "problem" }, reason) : null, field("Key", input, "It is kept in this tab, until you close it.")]
  const values = await dialog("Your key", content, {
    confirm: "Unlock",
    act: async (form) => {
      key.set(form.get("key").trim())
      try {
        await get("/api/whoami")
      } catch (error) {
        key.forget()
        throw error
      }
    },
  })
  isAsking = false
  if (values) await show()
}

who.addEventListener("click", async () => {
  if (!key.get()) return tell(who.title || "No key is in use")
  if (await dialog("Leave this key?", h("p", {}, who.title), { confirm: "Forget the key" })) {
    key.forget()
    await show()
  }
})
document.addEventListener("locked", ({ detail }) => askForKey(detail))
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input, textarea, select") || document.querySelector("dialog")) return
  const search = document.querySelector("input[type=search]")
  if (search) {
    event.preventDefault()
    search.focus()
  }
})
addEventListener("hashchange", show)
await show()
