// One stream of the open protocol: what it holds, live, and a place to write into it.

import { follow, post, request, streamPath } from "./api.js"
import { Contents } from "./contents.js"
import { copy, dialog, empty, h, pill, setText, tell, tellError } from "./dom.js"
import { moment, quoted } from "./format.js"
import { create, ends } from "./streams.js"
import { MESSAGES } from "./transcript.js"

export async function showStream(main, { parts: [path], signal }) {
  const head = await request(streamPath(path), { method: "HEAD", signal })
  const type = head.headers.get("Content-Type")
  const isMessages = type.split(";")[0].trim() === "application/json"
  const contents = new Contents(isMessages ? MESSAGES : type)
  signal.addEventListener("abort", () => contents.leave())
  const values = Object.fromEntries(["State", "Content type", "Tail", "Ends"].map((name) => [name, h("dd", {})]))
  const facts = h("dl", { class: "facts" }, Object.entries(values).map(([name, value]) => h("div", {}, h("dt", {}, name), value)))
  const expiresAt = head.headers.get("Stream-Expires-At")
  setText(values["Content type"], type)
  setText(values.Ends, ends({ ttlSeconds: head.headers.get("Stream-TTL"), expiresAt: expiresAt && moment(expiresAt) && expiresAt }))
  const composer = new Composer(path, type, isMessages)
  const close = button("Close", async () => {
    await request(streamPath(path), { method: "POST", headers: { "Stream-Closed": "true" } })
    tell("Closed")
  })
  const isOurs = path !== "__registry__"

  const note = (offset, isClosed) => {
    setText(values.Tail, offset)
    const state = isClosed ? "closed" : "open"
    if (values.State.textContent !== state) values.State.replaceChildren(pill(isClosed ? "done" : "running", state))
    composer.element.hidden = isClosed || !isOurs
    close.disabled = isClosed
  }
  note(head.headers.get("Stream-Next-Offset"), head.headers.get("Stream-Closed") === "true")

  const actions = h("div", { class: "actions" }, button("Copy as curl", () => copy(`curl -N ${quoted(`${location.origin}${streamPath(path)}?offset=-1&live=sse`)}`, "Command")))
  if (isOurs) {
    actions.append(button("Share…", () => share(path)), button("Fork…", () => create(path)), close, button("Delete…", () => remove(path), "danger"))
  }
  main.replaceChildren(
    h("nav", { class: "crumbs", "aria-label": "Where you are" }, h("a", { href: "#/streams" }, "All streams")),
    h("div", { class: "head" }, h("h1", {}, path), actions),
    facts,
    contents.element,
    composer.element,
  )
  follow(streamPath(path), {
    signal,
    onData: (bytes) => contents.add(isMessages ? asLines(bytes) : bytes),
    onControl: (control) => {
      note(control.streamNextOffset, Boolean(control.streamClosed))
      if (control.streamClosed) contents.end()
    },
  }).catch((error) => main.replaceChildren(empty("The stream is gone", error.message)))
}

/** A message stream's array, one message a line. */
function asLines(bytes) {
  const messages = JSON.parse(new TextDecoder().decode(bytes))
  return new TextEncoder().encode(messages.map((message) => `${JSON.stringify(message)}\n`).join(""))
}

function button(text, act, look = "") {
  return h("button", { type: "button", class: look, on: { click: () => act().catch(tellError) } }, text)
}

async function share(path) {
  const { url } = await post("/api/share", { path, rights: ["read"], seconds: 86400 })
  await copy(url, "Link for a day")
}

async function remove(path) {
  const text = h("p", {}, `${path} is deleted for everybody, and cannot be had back. Forks of it keep what they share.`)
  const values = await dialog("Delete this stream?", text, {
    confirm: "Delete",
    danger: true,
    act: () => request(streamPath(path), { method: "DELETE" }),
  })
  if (!values) return
  tell("Deleted")
  location.hash = "#/streams"
}

/** Where a person writes: Enter appends, Shift and Enter make a new line, files may be dropped. */
class Composer {
  constructor(path, type, isMessages) {
    this.path = path
    this.type = type
    this.isMessages = isMessages
    this.text = h("textarea", { rows: 2, "aria-label": "Append", placeholder: isMessages ? '{"say": "hello"}' : "Write something", on: { keydown: (event) => this.typed(event) } })
    this.hint = h("small", {}, "Enter appends, Shift+Enter makes a new line. Files may be dropped here.")
    this.element = h(
      "form",
      { class: "composer", on: { submit: (event) => this.submit(event), dragover: (event) => this.over(event, true), dragleave: (event) => this.over(event, false), drop: (event) => this.dropped(event) } },
      this.text,
      h("div", { class: "toolbar" }, h("button", { class: "primary" }, "Append"), this.hint),
    )
  }

  typed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return
    event.preventDefault()
    this.element.requestSubmit()
  }

  async submit(event) {
    event.preventDefault()
    const text = this.text.value
    if (!text) return
    if (await this.append(text)) {
      this.text.value = ""
      this.text.focus()
    }
  }

  over(event, isOver) {
    event.preventDefault()
    this.element.classList.toggle("over", isOver)
  }

  async dropped(event) {
    this.over(event, false)
    for (const file of event.dataTransfer.files) if (await this.append(file)) tell(`${file.name} appended`)
  }

  async append(body) {
    try {
      await request(streamPath(this.path), { method: "POST", headers: { "Content-Type": this.type }, body })
      return true
    } catch (error) {
      tellError(error)
      return false
    }
  }
}
