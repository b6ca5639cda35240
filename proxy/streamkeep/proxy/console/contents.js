// The contents of a stream, as a person wants to see them: read, as JSON, as bytes, or as a picture or sound; at every moment.

import { h, setText, svg } from "./dom.js"
import { duration, size } from "./format.js"
import { MESSAGES, Transcript, dataOf, parsed } from "./transcript.js"

// What a browser shows of these cannot run. Nothing else is made a blob, HTML and SVG least of all.
const MEDIA = /^(image\/(png|jpeg|gif|webp|avif)|audio\/(mpeg|wav|x-wav|ogg|webm|mp4|aac|flac)|video\/(mp4|webm|ogg))$/
const MAX_BYTES = 32 * 1024 * 1024
const MAX_ITEMS = 500
const MAX_CHARACTERS = 500_000
const MAX_NODE_CHARACTERS = 8192
const MAX_JSON_CHARACTERS = 200_000
const MAX_JSON_DEPTH = 40
const HEX_BYTES = 8 * 1024
const BARS = 96

export class Contents {
  constructor(contentType) {
    this.type = contentType
    this.mediaType = (contentType ?? "").split(";")[0].trim().toLowerCase()
    this.chunks = []
    this.bytes = 0
    this.startedAt = Date.now()
    this.isEnded = false
    this.isFollowed = true
    this.moment = null
    this.past = ""
    this.output = h("div", { class: "output", tabindex: "0", role: "region", "aria-label": "Contents" })
    this.modes = h("div", { class: "modes", role: "group", "aria-label": "Show as" })
    this.count = h("span", { class: "count" })
    this.timeline = svg("svg", { class: "timeline", viewBox: `0 0 ${BARS} 24`, preserveAspectRatio: "none", role: "img", "aria-label": "Nothing yet" })
    this.slider = h("input", { type: "range", min: 0, max: 1000, value: 1000, "aria-label": "Moment", on: { input: () => this.go(Number(this.slider.value)) } })
    this.play = h("button", { type: "button", on: { click: () => this.toggle() } }, "Replay")
    this.speed = h("select", { "aria-label": "Speed" }, [1, 2, 8].map((times) => h("option", { value: times }, `${times}×`)))
    this.hint = h("small", { class: "hint" })
    this.element = h(
      "div",
      { class: "contents" },
      h("div", { class: "toolbar" }, this.modes, this.count),
      this.output,
      h("div", { class: "player" }, this.timeline, this.slider, h("div", { class: "toolbar" }, this.play, this.speed, this.hint)),
    )
    const kinds = MEDIA.test(this.mediaType) ? ["media", "hex"] : ["chat", "json", "hex"]
    const names = { media: "Picture or sound", chat: "Read", json: "JSON", hex: "Bytes" }
    for (const kind of kinds) {
      this.modes.append(h("button", { type: "button", data: { kind }, on: { click: () => this.show(kind) } }, names[kind]))
    }
    const isText = /^text\/|json|xml|javascript/.test(this.mediaType) || this.mediaType === ""
    this.show(kinds[0] === "chat" && !isText ? "hex" : kinds[0])
  }

  /** Take bytes that came just now; false: no more is shown here. */
  add(bytes) {
    if (this.bytes + bytes.length > MAX_BYTES) {
      setText(this.hint, `Only the first ${size(this.bytes)} are shown here.`)
      return false
    }
    this.chunks.push({ bytes, at: Date.now() - this.startedAt })
    this.bytes += bytes.length
    this.schedule()
    return true
  }

  /** All there is so far came before anybody looked, nobody knows when. */
  began() {
    for (const chunk of this.chunks) chunk.at = 0
    this.startedAt = Date.now()
    if (this.chunks.length) this.past = "; what was there before this page looked stands at the beginning"
    this.schedule()
  }

  /** As `began`, for what is known to have taken so long: spread it evenly over that time. */
  spread(milliseconds) {
    const whole = joined(this.chunks.map(({ bytes }) => bytes))
    const pieces = cut(whole, this.mediaType)
    this.chunks = pieces.map((bytes, index) => ({ bytes, at: (milliseconds * (index + 1)) / pieces.length }))
    this.startedAt = Date.now() - milliseconds
    if (pieces.length) this.past = "; what came before this page looked is spread evenly"
    this.shown = Infinity
    this.schedule()
  }

  /** Nothing will come any more: it is read from its beginning, and not at its end. */
  rewind() {
    this.isFollowed = false
    this.output.scrollTop = 0
  }

  end() {
    this.isEnded = true
    this.schedule()
  }

  get length() {
    return Math.max(1, this.chunks.at(-1)?.at ?? 0)
  }

  show(kind) {
    this.kind = kind
    for (const button of this.modes.children) button.setAttribute("aria-pressed", String(button.dataset.kind === kind))
    this.shown = Infinity
    this.schedule()
  }

  go(thousandth) {
    this.moment = thousandth >= 1000 ? null : (this.length * thousandth) / 1000
    this.schedule()
  }

  toggle() {
    if (this.timer) return this.stop()
    let last = performance.now()
    this.moment = this.moment ?? 0
    setText(this.play, "Pause")
    this.timer = setInterval(() => {
      const now = performance.now()
      this.moment += (now - last) * Number(this.speed.value)
      last = now
      if (this.moment >= this.length) {
        this.moment = null
        this.stop()
      }
      this.schedule()
    }, 50)
  }

  stop() {
    clearInterval(this.timer)
    this.timer = null
    setText(this.play, "Replay")
  }

  leave() {
    this.stop()
    this.view?.leave?.()
  }

  schedule() {
    if (this.isScheduled) return
    this.isScheduled = true
    setTimeout(() => {
      this.isScheduled = false
      this.render()
    }, 60)
  }

  render() {
    const upTo = this.moment === null ? this.chunks.length : this.chunks.filter(({ at }) => at <= this.moment).length
    if (this.shown > upTo) {
      this.view?.leave?.()
      this.view = viewOf(this.kind, this.mediaType)
      this.shown = 0
      this.output.replaceChildren(this.view.element)
    }
    const isAtEnd = this.isFollowed && this.output.scrollHeight - this.output.scrollTop - this.output.clientHeight < 40
    this.view.feed(this.chunks.slice(this.shown, upTo).map(({ bytes }) => bytes))
    this.shown = upTo
    this.view.flush(this.isEnded && upTo === this.chunks.length)
    if (isAtEnd) this.output.scrollTop = this.output.scrollHeight
    const bytes = this.chunks.slice(0, upTo).reduce((sum, chunk) => sum + chunk.bytes.length, 0)
    const all = this.chunks.length
    setText(this.count, all ? `${upTo === all ? all : `${upTo} of ${all}`} ${all === 1 ? "piece" : "pieces"} · ${size(bytes)}` : "nothing yet")
    this.slider.value = this.moment === null ? 1000 : Math.round((1000 * this.moment) / this.length)
    this.slider.setAttribute("aria-valuetext", duration(this.moment ?? this.length))
    this.play.disabled = all === 0
    if (this.bytes < MAX_BYTES && all) {
      setText(this.hint, `${duration(this.moment ?? this.length)}${this.past}`)
    }
    this.draw()
  }

  draw() {
    const heights = new Array(BARS).fill(0)
    for (const { at, bytes } of this.chunks) heights[Math.min(BARS - 1, Math.floor((at / this.length) * BARS))] += bytes.length
    const highest = Math.max(1, ...heights)
    const bars = heights.flatMap((height, x) => {
      if (!height) return []
      const tall = 2 + 22 * Math.sqrt(height / highest)
      const isPast = this.moment === null || (x / BARS) * this.length <= this.moment
      return [svg("rect", { x: x + 0.1, y: 24 - tall, width: 0.8, height: tall, class: isPast ? "past" : "ahead" })]
    })
    this.timeline.setAttribute("aria-label", `${this.chunks.length} pieces in ${duration(this.length)}`)
    this.timeline.replaceChildren(...bars)
  }
}

function viewOf(kind, mediaType) {
  if (kind === "media") return new MediaView(mediaType)
  if (kind === "hex") return new HexView()
  return kind === "json" ? new JsonView(mediaType) : new ChatView(mediaType)
}

class ChatView {
  constructor(mediaType) {
    this.transcript = new Transcript(mediaType)
    this.characters = 0
    this.element = h("div", { class: "chat" })
  }

  feed(chunks) {
    for (const bytes of chunks) this.say(this.transcript.feed(bytes))
  }

  flush(isWhole) {
    if (isWhole) this.say(this.transcript.finish())
  }

  say(pieces) {
    for (const { kind, text } of pieces) {
      if (this.last?.dataset.kind !== kind) {
        this.last = h("p", { class: kind, data: { kind } })
        this.element.append(this.last)
      }
      this.write(text)
    }
    while (this.characters > MAX_CHARACTERS) this.forget()
  }

  write(text) {
    for (let at = Math.max(0, text.length - MAX_CHARACTERS); at < text.length; at += MAX_NODE_CHARACTERS) {
      const part = text.slice(at, at + MAX_NODE_CHARACTERS)
      const node = this.last.lastChild
      if (node && node.length + part.length <= MAX_NODE_CHARACTERS) node.appendData(part)
      else this.last.append(part)
      this.characters += part.length
    }
  }

  /** Leave the oldest text out: a browser lays out only so much of it in time. */
  forget() {
    const oldest = this.element.querySelector("p:not(.left-out)")
    this.characters -= oldest.firstChild.length
    oldest.firstChild.remove()
    if (!oldest.firstChild) oldest.remove()
    if (this.isCut) return
    this.isCut = true
    this.element.prepend(h("p", { class: "thought left-out" }, "What came earlier is left out here."))
  }
}

class JsonView {
  constructor(mediaType) {
    this.separator = { "text/event-stream": "\n\n", [MESSAGES]: "\n" }[mediaType]
    this.read = mediaType === "text/event-stream" ? (block) => dataOf(block) || block : (line) => line
    this.decoder = new TextDecoder()
    this.text = ""
    this.element = h("div", { class: "json" })
  }

  feed(chunks) {
    for (const bytes of chunks) this.text += this.decoder.decode(bytes, { stream: true })
    if (!this.separator) return
    const blocks = this.text.replaceAll("\r\n", "\n").split(this.separator)
    this.text = blocks.pop()
    for (const block of blocks.slice(-MAX_ITEMS)) this.element.append(h("pre", {}, pretty(this.read(block))))
    while (this.element.childElementCount > MAX_ITEMS) this.element.firstElementChild.remove()
  }

  flush() {
    if (!this.separator) this.element.replaceChildren(h("pre", {}, pretty(this.text)))
  }
}

/** A JSON text with its lines indented; one that is too long or too deep for that, and what is no JSON, as it is. */
function pretty(text) {
  const value = text.length <= MAX_JSON_CHARACTERS && depth(text) <= MAX_JSON_DEPTH ? parsed(text) : undefined
  return (value === undefined ? text : JSON.stringify(value, null, 2)).slice(-MAX_JSON_CHARACTERS)
}

/** How deep brackets are nested at most, those in strings among them. */
function depth(text) {
  let now = 0
  let most = 0
  for (let at = 0; at < text.length; at += 1) {
    const character = text[at]
    if (character === "[" || character === "{") most = Math.max(most, (now += 1))
    else if (character === "]" || character === "}") now -= 1
  }
  return most
}

class HexView {
  constructor() {
    this.held = new Uint8Array()
    this.before = 0
    this.element = h("pre", { class: "hex" })
  }

  feed(chunks) {
    const all = joined([this.held, ...chunks])
    const from = Math.max(0, Math.floor((all.length - HEX_BYTES) / 16) * 16)
    this.held = all.slice(from)
    this.before += from
  }

  flush() {
    const lines = this.before ? [`… ${this.before} bytes before these`] : []
    for (let at = 0; at < this.held.length; at += 16) {
      const row = Array.from(this.held.slice(at, at + 16))
      const hex = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ").padEnd(47)
      const text = row.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "·")).join("")
      lines.push(`${(this.before + at).toString(16).padStart(8, "0")}  ${hex}  ${text}`)
    }
    setText(this.element, lines.join("\n"))
  }
}

class MediaView {
  constructor(mediaType) {
    this.mediaType = mediaType
    this.chunks = []
    this.element = h(
      "div",
      { class: "media" },
      h("p", {}, "It is shown once it is whole."),
      h("button", { type: "button", on: { click: () => this.flush(true) } }, "Show what is there"),
    )
  }

  feed(chunks) {
    for (const bytes of chunks) this.chunks.push(bytes)
  }

  flush(isWhole) {
    if (!isWhole || this.address) return
    this.address = URL.createObjectURL(new Blob(this.chunks, { type: this.mediaType }))
    const kind = this.mediaType.split("/")[0]
    const shown = kind === "image" ? h("img", { src: this.address, alt: "What the stream holds" }) : h(kind, { src: this.address, controls: true })
    this.element.replaceChildren(shown)
  }

  leave() {
    if (this.address) URL.revokeObjectURL(this.address)
  }
}

function joined(chunks) {
  const whole = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0))
  let at = 0
  for (const chunk of chunks) {
    whole.set(chunk, at)
    at += chunk.length
  }
  return whole
}

/** Bytes in the pieces that they may have come in: events, or parts of one size. */
function cut(whole, mediaType) {
  const pieces = []
  let from = 0
  if (mediaType === "text/event-stream") {
    for (let at = 1; at < whole.length; at += 1) {
      if (whole[at] === 10 && whole[at - 1] === 10) {
        pieces.push(whole.slice(from, at + 1))
        from = at + 1
      }
    }
  } else {
    const step = Math.max(1, Math.ceil(whole.length / BARS))
    for (; from + step < whole.length; from += step) pieces.push(whole.slice(from, from + step))
  }
  if (from < whole.length) pieces.push(whole.slice(from))
  return pieces
}
