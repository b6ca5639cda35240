// One generation: its data and its control stream side by side, and what a person may do with it.

import { follow, get, post, request } from "./api.js"
import { Contents } from "./contents.js"
import { copy, dialog, empty, every, field, h, pill, setText, tell, tellError } from "./dom.js"
import { duration, moment, quoted, rate, size, tokens } from "./format.js"

export function stopButton({ tenant, sessionId, requestId }) {
  const button = h("button", { type: "button", class: "danger small", "aria-label": `Stop ${sessionId} / ${requestId}` }, "Stop")
  button.addEventListener("click", async () => {
    button.disabled = true
    try {
      const { state } = await post(`/api/${encodeURIComponent(sessionId)}/${encodeURIComponent(requestId)}/cancel`, undefined, { tenant })
      tell(state === "cancelled" ? "Stopped" : state === "cancelling" ? "It is being stopped" : `It had ended: ${state}`)
    } catch (error) {
      tellError(error)
      button.disabled = false
    }
  })
  return button
}

export async function showGeneration(main, { parts: [tenant, sessionId, requestId], signal, me }) {
  const row = await rowOf(tenant, sessionId, requestId, me, signal)
  const facts = new Facts(row)
  const actions = h("div", { class: "actions" })
  const title = h("h1", {}, sessionId, h("span", { class: "dim" }, ` / ${requestId}`))
  const isOurs = tenant === me.tenant
  const streams = isOurs && !row.goneAt && row.state !== "refused" ? new Streams({ sessionId, requestId }, row, signal) : null
  const stop = stopButton(row)
  if (streams) actions.append(...shareActions({ sessionId, requestId }))
  if (isOurs) actions.append(deleteButton({ sessionId, requestId }))
  main.replaceChildren(
    h("nav", { class: "crumbs", "aria-label": "Where you are" }, h("a", { href: `#/generations?session=${encodeURIComponent(sessionId)}` }, "All of this session")),
    h("div", { class: "head" }, title, actions),
    facts.element,
    streams ? streams.element : empty(...whyNothing(row, isOurs)),
  )
  const update = (found) => {
    facts.update(found)
    if (isLive(found) && !stop.isConnected) actions.prepend(stop)
    if (!isLive(found)) stop.remove()
    return isLive(found)
  }
  if (!update(row)) return
  const watching = new AbortController()
  signal.addEventListener("abort", () => watching.abort())
  every(1000, watching.signal, async () => {
    try {
      if (!update(await rowOf(tenant, sessionId, requestId, me, signal))) watching.abort()
    } catch (error) {
      if (!signal.aborted) tellError(error)
      if (error.status === undefined) watching.abort()
    }
  })
}

/** Somebody's link to a generation: the signature in it is all the permission there is, or needs to be. */
export async function showShared(main, { query, signal }) {
  const signed = Object.fromEntries(query)
  const { sessionId = "?", requestId = "?" } = signed
  const streams = new Streams(signed, { createdAt: null }, signal)
  main.replaceChildren(h("div", { class: "head" }, h("h1", {}, sessionId, h("span", { class: "dim" }, ` / ${requestId}`))), streams.element)
}

function isLive({ state }) {
  return state === "creating" || state === "running"
}

async function rowOf(tenant, sessionId, requestId, me, signal) {
  const wanted = { session: sessionId, request: requestId, tenant: me.isOperator ? tenant : null }
  const { generations } = await get("/api/generations", wanted, { signal })
  const row = generations.find((each) => each.tenant === tenant)
  if (!row) throw new Error("There is no such generation. It may have been deleted, or be another tenant's.")
  return row
}

function whyNothing(row, isOurs) {
  if (row.state === "refused") return ["Upstream refused it", `It answered ${row.upstreamStatus ?? "with an error"}, and there is nothing to read. The same ids may be used again.`]
  if (!isOurs) return ["Another tenant's contents", `What ${row.tenant} sends and gets is read with a key of theirs. You can see how it goes, and stop it.`]
  return ["Its data are gone", `They were kept until ${moment(row.goneAt)}. The ids stay taken, so that nothing is called twice.`]
}

/** What is known about a generation, in words. */
class Facts {
  constructor(row) {
    this.values = {}
    const names = { state: "State", upstream: "Upstream", type: "Content type", created: "Began", took: "Took", bytes: "Bytes", chunks: "Chunks/s", usage: "Usage", readers: "Readers", owner: "Owner" }
    this.element = h("dl", { class: "facts" })
    for (const [name, label] of Object.entries(names)) {
      this.values[name] = h("dd", {})
      this.element.append(h("div", {}, h("dt", {}, label), this.values[name]))
    }
    this.last = null
    this.update(row)
  }

  update(row) {
    const { values } = this
    const shown = row.code && row.state === "error" ? row.code : row.state
    if (values.state.textContent !== shown) values.state.replaceChildren(pill(row.state, shown))
    setText(values.upstream, `${row.upstream ?? "–"}${row.upstreamStatus ? ` · ${row.upstreamStatus}` : ""}`)
    setText(values.type, row.contentType ?? "–")
    setText(values.created, moment(row.createdAt))
    setText(values.took, duration((row.endedAt ? Date.parse(row.endedAt) : Date.now()) - Date.parse(row.createdAt)))
    setText(values.bytes, size(row.bytes))
    this.updateRate(row.chunks)
    setText(values.usage, tokens(row.usage))
    setText(values.readers, String(row.readers))
    setText(values.owner, row.owner ? (row.owner.isHere ? "this process" : `process ${row.owner.id}`) : "–")
  }

  updateRate(chunks) {
    const now = performance.now()
    const last = this.last
    if (last && now - last.at < 500) return
    this.last = { chunks, at: now }
    const isKnown = chunks !== null && last?.chunks != null
    setText(this.values.chunks, isKnown ? rate(((chunks - last.chunks) * 1000) / (now - last.at)) : "–")
  }
}

/** The two streams, read as anybody reads them. `query` names the generation, and may be a signed one. */
class Streams {
  constructor(query, row, signal) {
    this.query = query
    this.row = row
    this.signal = signal
    this.place = h("div", {}, h("p", { class: "loading" }, "Waiting for upstream…"))
    this.events = h("ol", { class: "events" }, h("li", { class: "dim" }, "No event yet: it has not ended."))
    this.element = h(
      "div",
      { class: "split" },
      h("section", { "aria-label": "Data stream" }, h("h2", {}, "Data"), this.place),
      h("section", { "aria-label": "Control stream" }, h("h2", {}, "Control"), this.events),
    )
    this.readData().catch((error) => this.fail(error))
    this.readControl().catch(() => {
      if (!this.signal.aborted) this.events.replaceChildren(h("li", { class: "dim" }, "It cannot be read."))
    })
  }

  /** What was read already stays: a link may expire, or a key be revoked, while somebody looks. */
  fail(error) {
    if (this.signal.aborted) return
    const told = empty("It cannot be read", error.message)
    if (this.contents) this.place.append(told)
    else this.place.replaceChildren(told)
  }

  async readData() {
    const contents = new Contents(await this.contentType())
    if (this.signal.aborted) return
    this.contents = contents
    this.signal.addEventListener("abort", () => contents.leave())
    this.place.replaceChildren(contents.element)
    let isPast = true
    await follow("/stream/data", {
      query: this.query,
      signal: this.signal,
      onData: (bytes) => contents.add(bytes),
      onControl: (control) => {
        if (isPast && (control.upToDate || control.streamClosed)) {
          isPast = false
          contents.spread(this.tookMilliseconds(control.streamClosed))
          if (control.streamClosed) contents.rewind()
        }
        if (control.streamClosed) contents.end()
      },
    })
  }

  /** Of the data, once upstream has answered. */
  async contentType() {
    if (this.row.contentType) return this.row.contentType
    for (;;) {
      try {
        const response = await request("/stream/data", { method: "HEAD", query: this.query, signal: this.signal })
        if (response.headers.get("Upstream-Content-Type") ?? response.headers.get("Content-Type")) {
          return response.headers.get("Upstream-Content-Type") ?? response.headers.get("Content-Type")
        }
      } catch (error) {
        if (this.signal.aborted || error.status !== 503) throw error
      }
      await new Promise((resolve) => setTimeout(resolve, 300))
    }
  }

  tookMilliseconds(isEnded) {
    if (this.durationMs) return this.durationMs
    if (!this.row.createdAt) return isEnded ? 10_000 : 1000
    return (isEnded && this.row.endedAt ? Date.parse(this.row.endedAt) : Date.now()) - Date.parse(this.row.createdAt)
  }

  async readControl() {
    const decoder = new TextDecoder()
    await follow("/stream/control", {
      query: this.query,
      signal: this.signal,
      onData: (bytes) => {
        const found = JSON.parse(decoder.decode(bytes))
        this.durationMs = found[0]?.durationMs
        this.events.replaceChildren(...found.map((event) => h("li", {}, pill(event.event, event.code), h("p", {}, event.message), h("pre", {}, JSON.stringify(event, null, 2)))))
      },
    })
  }
}

function deleteButton({ sessionId, requestId }) {
  const remove = async () => {
    const values = await dialog("Delete this generation?", h("p", {}, "What was asked and answered is erased for everybody, and cannot be had back. The ids stay taken. If it still runs, it is stopped."), {
      confirm: "Delete",
      danger: true,
      act: () => request(`/api/${encodeURIComponent(sessionId)}/${encodeURIComponent(requestId)}`, { method: "DELETE" }),
    })
    if (!values) return
    tell("Deleted")
    location.hash = "#/generations"
  }
  return h("button", { type: "button", class: "danger", on: { click: () => remove().catch(tellError) } }, "Delete…")
}

function shareActions({ sessionId, requestId }) {
  const ids = { sessionId, requestId }
  const signedUrl = async (seconds) => (await post("/api/share", { ...ids, rights: ["read"], seconds })).streamUrl
  const curl = async () => {
    const signed = new URL(await signedUrl(3600))
    signed.searchParams.set("offset", "-1")
    signed.searchParams.set("live", "sse")
    await copy(`curl -N ${quoted(signed)}`, "Command")
  }
  const share = async () => {
    const lifetimes = [[3600, "an hour"], [86400, "a day"], [7 * 86400, "a week"], [30 * 86400, "30 days"]]
    const select = h("select", { name: "seconds" }, lifetimes.map(([seconds, name]) => h("option", { value: seconds, selected: seconds === 86400 }, name)))
    const values = await dialog("Share this generation", [h("p", {}, "Whoever has the link can read it, and nothing else."), field("For", select)], { confirm: "Copy the link" })
    if (!values) return
    const signed = new URL(await signedUrl(Number(values.get("seconds"))))
    await copy(`${location.origin}${location.pathname}#/shared?${signed.searchParams}`, "Link")
  }
  const button = (text, act) => h("button", { type: "button", on: { click: () => act().catch(tellError) } }, text)
  return [button("Copy as curl", curl), button("Share…", share)]
}
