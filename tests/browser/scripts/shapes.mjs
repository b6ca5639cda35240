// A page that follows a generation with two of the published `ShapeStream`; the query is what its creation answered.
import { ShapeStream } from "@electric-sql/client"

const { streamUrl, controlUrl, requestId, sessionId } = Object.fromEntries(new URLSearchParams(location.search))
const main = document.querySelector("main")

function follow(url, show) {
  new ShapeStream({ url, params: { requestId, sessionId }, liveSse: true }).subscribe((messages) => {
    for (const { value } of messages.filter((message) => "value" in message)) show(value)
  })
}

follow(streamUrl, ({ data }) => main.append(data))
follow(controlUrl, ({ event, data_row_id }) => (document.title = `${event} after ${BigInt(data_row_id)}`))
