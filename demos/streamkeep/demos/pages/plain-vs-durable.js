// One question, asked twice: by the browser's own `fetch`, and by the one that survives.
import { beforeDrawing, find } from "./dom.js"
import { dollars, switches, watchBill, watchFetch } from "./line.js"
import { markdown } from "./markdown.js"
import { accepted, jsonEvents } from "./streamkeep-chat.js"
import { createFetchClient } from "./streamkeep.js"

const SESSION = "plain-vs-durable"
const QUESTION = { messages: [{ role: "user", parts: [{ type: "text", text: "Tell me a long story" }] }] }
const PAUSE_MS = 1000

const { urls } = await (await fetch("/config.json")).json()
const durableFetch = createFetchClient({ proxyUrl: urls.proxy })
const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(QUESTION) }

class Pane {
  text = ""
  #draw

  constructor(name) {
    this.name = name
    this.#draw = beforeDrawing(() => {
      const shown = find(`${name}-text`)
      shown.replaceChildren(...markdown(this.text))
      shown.scrollTop = shown.scrollHeight
    })
  }

  become(state, text = state) {
    const pill = find(`${this.name}-state`)
    pill.className = `pill ${state}`
    pill.textContent = text
  }

  /** Show an answer from its start; errors when it breaks off. */
  async show(response) {
    this.text = ""
    const reader = jsonEvents((await accepted(response)).body).getReader()
    for (let read; !(read = await reader.read()).done; ) {
      if (read.value.type === "error") throw new Error(read.value.errorText)
      if (read.value.type !== "text-delta") continue
      this.text += read.value.delta
      this.become("running")
      this.#draw()
    }
    this.become("done")
  }
}

const plain = new Pane("plain")
const durable = new Pane("durable")
watchFetch([urls.proxy], (state) => state === "reconnecting" && durable.become(state))

/** Ask, and after each break ask again, as often as it takes: there is nothing to go on with. */
async function askPlainly() {
  plain.become("running")
  for (;;) {
    try {
      return await plain.show(await fetch(`${urls.plain}/api/chat?payer=plain`, post))
    } catch {
      plain.become("broken", "broke off: asks again")
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS))
    }
  }
}

async function askDurably(headers) {
  const answer = await durableFetch(`${location.origin}/api/chat`, { ...post, headers: { ...post.headers, "X-Session-ID": SESSION, ...headers } })
  if (answer.status === 204) return false
  await durable.show(answer)
  return true
}

async function both() {
  find("ask").disabled = true
  durable.become("running")
  const broke = (error) => durable.become("broken", error.message)
  await Promise.all([askPlainly(), askDurably().catch(broke)])
  find("ask").disabled = false
}

/** A page that was loaded in the middle has the one answer still, and the other no more. */
async function resume() {
  find("ask").disabled = true
  const [pending] = durableFetch.pending(SESSION)
  if (pending) plain.become("broken", "gone with the page")
  try {
    await askDurably({ "X-Resume-Active-Generation": "true", "X-Replay-From-Start": "true" })
  } catch (error) {
    durable.become("broken", error.message)
  }
  find("ask").disabled = false
}

find("ask").addEventListener("click", both)
watchBill((bills) => {
  for (const { name } of [plain, durable]) {
    const { calls, tokens, dollars: cost } = bills[name] ?? { calls: 0, tokens: 0, dollars: 0 }
    find(`${name}-calls`).textContent = calls
    find(`${name}-tokens`).textContent = tokens
    find(`${name}-cost`).textContent = dollars(cost)
  }
})
switches()
resume()
