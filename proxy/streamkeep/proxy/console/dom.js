// Elements out of data. Texts become text nodes and nothing else: what streams hold can be shown, and cannot run.

/** Make an element. `on` are listeners, `data` its dataset; an attribute that is false, null or undefined is left out. */
export function h(tag, { on = {}, data = {}, ...attributes } = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value)
  }
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener)
  Object.assign(element.dataset, data)
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false))
  return element
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  element.append(...children)
  return element
}

/** Change an element's text, only when it is another one: what stays is not read out again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text
}

/** Tell a person what became of what they asked for. What is told again stays for longer, and is there once. */
export function tell(text, kind = "good") {
  const news = document.querySelector("#news")
  const known = [...news.children].find((note) => note.textContent === text)
  const note = known ?? h("p", { class: `note ${kind}` }, text)
  clearTimeout(endings.get(note))
  endings.set(note, setTimeout(() => note.remove(), kind === "bad" ? 10_000 : 4_000))
  if (!known) news.append(note)
}

const endings = new WeakMap()

export function tellError(error) {
  if (error.name !== "AbortError") tell(error.message, "bad")
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text)
    tell(`${what} copied`)
  } catch {
    await dialog("Copy this", h("textarea", { rows: 6, readonly: true, "aria-label": what }, text))
  }
}

/** A dialog with a form; resolves to its FormData, or null when it was left. `act` may throw: then it stays, and says why. */
export function dialog(title, content, { confirm = null, danger = false, act = async () => {} } = {}) {
  return new Promise((resolve) => {
    const problem = h("p", { class: "problem", role: "alert" })
    const leave = h("button", { type: "button", class: "quiet", on: { click: () => shown.close() } }, confirm ? "Cancel" : "Close")
    const go = confirm && h("button", { class: danger ? "danger" : "primary" }, confirm)
    const form = h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, title), content, problem, h("div", { class: "actions" }, leave, go))
    const shown = h("dialog", { "aria-labelledby": "dialog-title" }, form)
    let result = null
    form.addEventListener("submit", async (event) => {
      event.preventDefault()
      if (go) go.disabled = true
      try {
        const values = new FormData(form)
        await act(values)
        result = values
        shown.close()
      } catch (error) {
        setText(problem, error.message)
      } finally {
        if (go) go.disabled = false
      }
    })
    shown.addEventListener("close", () => {
      shown.remove()
      resolve(result)
    })
    document.body.append(shown)
    shown.showModal()
  })
}

export function field(label, control, hint = null) {
  return h("label", { class: "field" }, h("span", {}, label), control, hint && h("small", {}, hint))
}

export function empty(title, ...text) {
  return h("div", { class: "empty" }, h("h2", {}, title), ...text.map((each) => (each instanceof Node ? each : h("p", {}, each))))
}

export function pill(state, text = state) {
  return h("span", { class: `pill ${state}` }, text)
}

/** A table's frame; `columns` are its headings, `name` is what it holds. */
export function table(name, columns, rows) {
  return h(
    "table",
    { "aria-label": name },
    h("thead", {}, h("tr", {}, columns.map((column) => (column ? h("th", { scope: "col" }, column) : h("td", {}))))),
    h("tbody", { on: { keydown: moveBetweenRows } }, rows),
  )
}

function moveBetweenRows(event) {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key]
  const row = event.target.closest("tr")
  const next = step && row && event.target.matches("a") && row[step]?.querySelector("a")
  if (next) {
    event.preventDefault()
    next.focus()
  }
}

/** Do something now, and again at a pace, until the page is left; a page that nobody looks at rests. */
export async function every(milliseconds, signal, action) {
  while (!signal.aborted) {
    if (!document.hidden) await action()
    await pause(milliseconds, signal)
  }
}

export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds)
    signal?.addEventListener("abort", () => { clearTimeout(timer); resolve() }, { once: true })
  })
}

/** The last call of many, once they have stopped coming. */
export function debounced(action, milliseconds = 200) {
  let timer
  return (...values) => {
    clearTimeout(timer)
    timer = setTimeout(() => action(...values), milliseconds)
  }
}

/** An action at most so often, however often it is asked for; when it was asked for meanwhile, it is done once more. */
export function throttled(action, milliseconds, signal) {
  let isWanted = false
  let isRunning = false
  const run = async () => {
    isRunning = true
    while (isWanted && !signal.aborted) {
      isWanted = false
      await action()
      await pause(milliseconds, signal)
    }
    isRunning = false
  }
  return () => {
    isWanted = true
    if (!isRunning) run()
  }
}
