// Health: can it serve, and how does it do; out of /metrics, as it changes while somebody looks.

import { get, request } from "./api.js"
import { empty, every, h, pill, setText, svg } from "./dom.js"
import { duration, rate, size } from "./format.js"

const SAMPLES = 60
const seconds = (value) => (value === null ? "–" : duration(value * 1000))
const CHARTS = [
  ["Requests", "a second", (m, dt) => perSecond(m, dt, "streamkeep_requests_total"), rate],
  ["Errors of ours", "a second", (m, dt) => perSecond(m, dt, "streamkeep_errors_total"), rate],
  ["Commit lag", "95 of 100 within", (m) => quantile(m, "streamkeep_commit_lag_seconds"), seconds],
  ["Reader lag", "95 of 100 within", (m) => quantile(m, "streamkeep_reader_lag_seconds"), seconds],
  ["Vendor's first bytes", "95 of 100 within", (m) => quantile(m, "streamkeep_upstream_first_chunk_seconds"), seconds],
  ["Stored", "a second", (m, dt) => perSecond(m, dt, "streamkeep_stored_bytes_total"), size],
  ["Delivered", "a second", (m, dt) => perSecond(m, dt, "streamkeep_delivered_bytes_total"), size],
  ["Running", "generations", (m) => sum(m.now, "streamkeep_generations_running"), String],
  ["Readers", "live", (m) => sum(m.now, "streamkeep_readers"), String],
]

export async function showHealth(main, { signal, me }) {
  const state = h("div", { class: "actions" })
  const place = h("div", { class: "charts" })
  main.replaceChildren(h("div", { class: "head" }, h("h1", {}, "Health"), state), place)
  every(2000, signal, async () => state.replaceChildren(...(await readiness(signal))))
  if (!me.isOperator) return place.replaceChildren(empty("Figures are the operator's to see", "With an operator's key this page shows latency, throughput, commit lag and errors."))
  const charts = CHARTS.map((chart) => new Chart(...chart))
  place.append(...charts.map(({ element }) => element))
  let last = null
  every(2000, signal, async () => {
    try {
      const now = { at: performance.now(), now: samples(await (await request("/metrics", { signal })).text()) }
      if (last) for (const chart of charts) chart.add({ now: now.now, before: last.now }, (now.at - last.at) / 1000)
      else for (const chart of charts) chart.wait()
      last = now
    } catch (error) {
      if (!signal.aborted) last = null
    }
  })
}

async function readiness(signal) {
  try {
    const { version } = await get("/health", {}, { signal })
    const response = await request("/ready", { signal }).catch((error) => error)
    const isReady = response.ok === true
    return [pill(isReady ? "done" : "error", isReady ? "ready" : "not ready"), h("span", { class: "dim" }, `version ${version}`)]
  } catch (error) {
    return [pill("error", "does not answer")]
  }
}

/** The samples of an exposition: name with labels → value. */
function samples(text) {
  const found = new Map()
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue
    const end = line.lastIndexOf(" ")
    found.set(line.slice(0, end), Number(line.slice(end + 1)))
  }
  return found
}

const named = (name) => ([key]) => key === name || key.startsWith(`${name}{`)

function sum(metrics, name) {
  return [...metrics].filter(named(name)).reduce((all, [, value]) => all + value, 0)
}

function perSecond({ now, before }, dt, name) {
  return Math.max(0, sum(now, name) - sum(before, name)) / dt
}

/** Below what 95 of 100 of a histogram's new values lie; null without any. */
function quantile({ now, before }, name) {
  const buckets = new Map()
  for (const [key, value] of [...now].filter(named(`${name}_bucket`))) {
    const bound = Number(/le="([^"]*)"/.exec(key)[1].replace("+Inf", "Infinity"))
    buckets.set(bound, (buckets.get(bound) ?? 0) + value - (before.get(key) ?? 0))
  }
  const bounds = [...buckets].sort(([one], [other]) => one - other)
  const all = bounds.at(-1)?.[1] ?? 0
  if (all <= 0) return null
  const bound = bounds.find(([, count]) => count >= 0.95 * all)[0]
  return bound === Infinity ? bounds.at(-2)[0] : bound
}

class Chart {
  constructor(name, unit, read, shown) {
    this.read = read
    this.shown = shown
    this.name = name
    this.values = []
    this.value = h("strong", {}, "…")
    this.line = svg("svg", { viewBox: `0 0 ${SAMPLES - 1} 30`, preserveAspectRatio: "none", role: "img", "aria-label": name })
    this.element = h("section", { class: "chart", "aria-label": name }, h("h2", {}, name), h("p", {}, this.value, h("span", { class: "dim" }, ` ${unit}`)), this.line)
  }

  wait() {
    setText(this.value, "…")
  }

  add(metrics, dt) {
    const value = this.read(metrics, dt)
    this.values = [...this.values, value].slice(-SAMPLES)
    setText(this.value, this.shown(value))
    const highest = Math.max(...this.values.map((each) => each ?? 0), 1e-9)
    const points = this.values.map((each, index) => `${SAMPLES - this.values.length + index},${29 - 27 * ((each ?? 0) / highest)}`)
    this.line.setAttribute("aria-label", `${this.name}: now ${this.shown(value)}, at most ${this.shown(highest < 1e-8 ? 0 : highest)} in the last two minutes`)
    this.line.replaceChildren(svg("polyline", { points: points.join(" ") }))
  }
}
