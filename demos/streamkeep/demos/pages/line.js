// The line from this page to its servers: its switches, and whether what is asked gets through.
import { find } from "./dom.js"

/** Watch the requests to some origins. `tell` is given "connected" or "reconnecting", on every change. */
export function watchFetch(origins, tell) {
  const asked = globalThis.fetch
  let state = "connected"
  const become = (next) => {
    if (next !== state) tell((state = next))
  }
  globalThis.fetch = async (input, init) => {
    const { origin } = new URL(input.url ?? input, location)
    if (!origins.includes(origin)) return asked(input, init)
    const failed = (error) => {
      if (!init?.signal?.aborted) become("reconnecting")
      throw error
    }
    const response = await asked(input, init).catch(failed)
    become("connected")
    if (!response.body) return response
    const reader = response.body.getReader()
    const body = new ReadableStream({
      async pull(controller) {
        const { done, value } = await reader.read().catch(failed)
        if (done) controller.close()
        else controller.enqueue(value)
      },
      cancel: (reason) => reader.cancel(reason),
    })
    return new Response(body, response)
  }
}

/** Make the buttons work that drop and slow the line and load the page again. */
export async function switches() {
  const drop = find("drop")
  const slow = find("slow")
  const show = ({ isCut, isSlow }) => {
    drop.setAttribute("aria-pressed", isCut)
    drop.textContent = isCut ? "Restore the line" : "Drop the line"
    slow.setAttribute("aria-pressed", isSlow)
    slow.textContent = isSlow ? "Full speed" : "Slow line"
    // What a browser tells a page when its network is back.
    if (!isCut) dispatchEvent(new Event("online"))
  }
  const turn = async (change) => {
    const headers = { "Content-Type": "application/json" }
    show(await (await fetch("/line", { method: "POST", headers, body: JSON.stringify(change) })).json())
  }
  const isOn = (button) => button.getAttribute("aria-pressed") === "true"
  drop.addEventListener("click", () => turn({ isCut: !isOn(drop) }))
  slow.addEventListener("click", () => turn({ isSlow: !isOn(slow) }))
  find("reload").addEventListener("click", () => location.reload())
  show(await (await fetch("/line")).json())
}

/** Show what the model's answers cost, now and again: `show` is given the bills by payer. */
export function watchBill(show) {
  const look = async () => {
    if (!document.hidden) show(await (await fetch("/bill")).json())
    setTimeout(look, 500)
  }
  look()
}

export const dollars = (amount) => `$${amount.toFixed(4)}`
