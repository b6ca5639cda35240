// `ShapeStream` on a generation's two streams: `node shapes.mjs CREATED SCENARIO` prints one JSON object. CREATED is what its creation answered.
import { ShapeStream } from "@electric-sql/client"

const [created, scenario] = [JSON.parse(process.argv[2]), process.argv[3]]
const warnings = []
console.warn = (...words) => warnings.push(words.join(" "))

// Both streams are followed until the control row that ends the response and every data row before it are there; or, with
// `until`, until there is so much text. `from` are positions that an earlier reading told.
async function follow({ liveSse = true, from = { data: {}, control: {} }, until = Infinity } = {}) {
  const found = { text: "", ids: [], modes: [], end: null, refused: null }
  const aborter = new AbortController()
  const done = new Promise((resolve) => {
    const look = () => {
      const isWhole = found.end !== null && (found.ids.at(-1) ?? from.lastId ?? "0".repeat(20)) >= found.end.dataRowId
      if (isWhole || found.refused !== null || found.text.length >= until) resolve()
    }
    const open = (url, position) =>
      new ShapeStream({
        url,
        ...position,
        params: { requestId: created.requestId, sessionId: created.sessionId },
        liveSse,
        signal: aborter.signal,
        fetchClient: (target, init) => {
          const asked = new URL(target).searchParams
          found.modes.push(asked.has("live_sse") ? "sse" : asked.has("live") ? "long-poll" : "page")
          return fetch(target, init)
        },
        onError: (error) => {
          found.refused = { status: error.status ?? null, name: error.name }
          look()
        },
      })
    const [data, control] = [open(created.streamUrl, from.data), open(created.controlUrl, from.control)]
    found.positions = () => ({
      data: { handle: data.shapeHandle, offset: data.lastOffset },
      control: { handle: control.shapeHandle, offset: control.lastOffset },
      lastId: found.ids.at(-1),
    })
    data.subscribe((messages) => {
      for (const { value } of messages.filter((message) => "value" in message)) {
        found.text += value.data
        found.ids.push(value.id.toString().padStart(20, "0"))
      }
      look()
    })
    control.subscribe((messages) => {
      for (const { value } of messages.filter((message) => "value" in message)) {
        found.end = { event: value.event, payload: value.payload, dataRowId: value.data_row_id }
      }
      look()
    })
  })
  await done
  const positions = found.positions()
  aborter.abort()
  return { ...found, positions, warnings }
}

const scenarios = {
  sse: () => follow(),
  longPoll: () => follow({ liveSse: false }),
  // Left in the middle, and gone on with from the positions; then once more, from where all was read.
  async resumed() {
    const first = await follow({ until: 20 })
    const rest = await follow({ from: first.positions })
    const nothing = await follow({ from: { ...rest.positions, control: {} } })
    return { first, rest, nothing }
  },
  // What a page has kept of another server's streams.
  foreign: () => follow({ from: { data: { handle: "38-17", offset: "26800584_4" }, control: { handle: "39-17", offset: "7_0" } } }),
}

console.log(JSON.stringify(await scenarios[scenario]()))
process.exit(0)
