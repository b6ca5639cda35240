// One stream of the open protocol: what it holds, live, and a place to write into it.

import { follow, post, request, streamPath } from "./api.js"
import { Contents } from "./contents.js"
import { copy, dialog, empty, h, pill, setText, tell, tellError } from "./dom.js"
import { quoted, visible } from "./format.js"
import { create, ends } from "./streams.js"
import { MESSAGES } from "./transcript.js"

export async function showStream(main, { parts: [path], signal }) {
  const head = await request(streamPath(path), { method: "HEAD", signal })
  const type = head.headers.get("Content-Type")
  const isMessages = type.split(";")[0].trim() === "application/json"
  const contents = new Contents(isMessages ? MESSAGES : type)
  signal.addEventListener("abort", () => contents.leave())
  const values = Object.fromEntries(["State", "Content type", "Tail", "Ends"].map((name) => [name, h("dd", {})]))
  const facts = h("dl", { class: "facts wide" }, Object.entries(values).map(([name, value]) => h("div", {}, h("dt", {}, name), value)))
  setText(values["Content type"], type)
  setText(values.Ends, ends({ ttlSeconds: head.headers.get("Stream-TTL"), expiresAt: head.headers.get("Stream-Expires-At") }))
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

  const actions = h("div", { class: "actions" }, button("Copy as curl", () => copyAsCurl(path)))
  if (isOurs) {
    actions.append(button("Share…", () => share(path)), button("Fork…", () => create(path)), close, button("Delete…", () => remove(path), "danger"))
  }
  main.replaceChildren(
    h("nav", { class: "crumbs", "aria-label": "Where you are" }, h("a", { href: "#/streams" }, "All streams")),
    h("div", { class: "head" }, h("h1", {}, visible(path)), actions),
    facts,
    contents.element,
    composer.element,
  )
  let isPast = true
  follow(streamPath(path), {
    signal,
    onData: (bytes) => contents.add(isMessages ? asLines(bytes) : bytes),
    onControl: (control) => {
      note(control.streamNextOffset, Boolean(control.streamClosed))
      if (isPast && (control.upToDate || control.streamClosed)) {
        isPast = false
        contents.began()
        if (control.streamClosed) contents.rewind()
      }
      if (control.streamClosed) contents.end()
    },
  }).catch((error) => {
    if (!signal.aborted) main.replaceChildren(empty("The stream is gone", error.message))
  })
}

/** A message stream's array, one message a line. */
function asLines(bytes) {
  const messages = JSON.parse(new TextDecoder().decode(bytes))
  return new TextEncoder().encode(messages.map((message) => `${JSON.stringify(message)}\n`).join(""))
}

function button(text, act, look = "") {
  return h("button", { type: "button", class: look, on: { click: () => act().catch(tellError) } }, text)
}

async function signedUrl(path, seconds) {
  return (await post("/api/share", { path, rights: ["read"], seconds })).url
}

async function share(path) {
  await copy(await signedUrl(path, 86400), "Link for a day")
}

/** With a signed URL: what lies in a shell's history is no key, and is useless within the hour. */
async function copyAsCurl(path) {
  const signed = new URL(await signedUrl(path, 3600))
  signed.searchParams.set("offset", "-1")
  signed.searchParams.set("live", "sse")
  await copy(`curl -N ${quoted(signed)}`, "Command, good for an hour,")
}

async function remove(path) {
  const text = h("p", {}, h("strong", {}, visible(path)), " is deleted for everybody, and cannot be had back. Forks of it keep what they share.")
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
