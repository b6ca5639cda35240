// Keys and limits: what this key may do, and for operators everybody's.

import { get, post } from "./api.js"
import { dialog, empty, field, h, pill, table, tell, tellError } from "./dom.js"
import { age, moment } from "./format.js"

const DAYS = [["", "Never"], [86400, "In a day"], [30 * 86400, "In 30 days"], [365 * 86400, "In a year"]]

export async function showKeys(main, { signal, me }) {
  const list = h("div", { class: "list" })
  const mine = h(
    "dl",
    { class: "facts" },
    fact("You are", me.isOpen ? "this machine, in development mode" : me.isOperator ? "an operator" : "a tenant"),
    fact("Tenant", me.tenant),
    fact("Key", me.keyId ?? "–"),
    fact("At once", me.maxRunning ?? "no limit"),
    fact("A minute", me.maxPerMinute ?? "no limit"),
    fact("May call", me.upstreams ? me.upstreams.join(", ") : "all that this proxy may"),
  )
  const make = me.isOperator && h("button", { type: "button", class: "primary", on: { click: () => makeKey().catch(tellError) } }, "New key")
  main.replaceChildren(h("div", { class: "head" }, h("h1", {}, "Keys"), h("div", { class: "actions" }, make)), mine, list)
  if (!me.isOperator) return list.replaceChildren(empty("Other keys are the operator's to see", "With an operator's key this page lists them all, makes new ones and revokes old ones."))
  await refresh()

  async function refresh() {
    const { keys } = await get("/api/keys", {}, { signal })
    const columns = ["State", "Key", "Tenant", "Name", "Upstreams", "At once", "A minute", "Made", "Expires", ""]
    list.replaceChildren(keys.length ? table("Keys", columns, keys.map(row)) : none())
  }

  function none() {
    if (!me.isOpen) return empty("No keys made yet", "Those from the proxy's settings are in use, and are not listed here.")
    return empty("No keys yet", "This proxy serves its own machine alone. The first key, an operator's, ends that for good.")
  }

  function row(key) {
    const cell = (label, text) => h("td", { data: { label } }, text)
    const revoke = key.state === "active" && h("button", { type: "button", class: "danger small", "aria-label": `Revoke ${key.id}`, on: { click: () => revokeKey(key).catch(tellError) } }, "Revoke")
    return h(
      "tr",
      {},
      h("td", {}, pill(key.state === "active" ? "running" : "cancelled", key.state)),
      h("td", { class: "name" }, h("code", {}, key.id)),
      cell("Tenant", `${key.tenant}${key.isOperator ? " (operator)" : ""}`),
      cell("Name", key.name ?? "–"),
      cell("Upstreams", key.upstreams ? key.upstreams.join(", ") : "all"),
      cell("At once", String(key.maxRunning ?? "–")),
      cell("A minute", String(key.maxPerMinute ?? "–")),
      cell("Made", age(key.createdAt)),
      cell("Expires", moment(key.expiresAt)),
      h("td", { class: "act" }, revoke),
    )
  }

  async function makeKey() {
    const content = [
      field("Name", h("input", { name: "name", maxlength: 200, autocomplete: "off" }), "For you, to know it by"),
      field("Tenant", h("input", { name: "tenant", required: true, value: "default", autocomplete: "off" })),
      h("div", { class: "pair" }, field("At once", h("input", { name: "maxRunning", type: "number", min: 1 })), field("A minute", h("input", { name: "maxPerMinute", type: "number", min: 1 }))),
      field("May call", h("input", { name: "upstreams", autocomplete: "off", placeholder: "all" }), "Names of upstreams or URL globs, with commas"),
      field("Expires", h("select", { name: "seconds" }, DAYS.map(([value, name]) => h("option", { value }, name)))),
      h("label", { class: "check" }, h("input", { name: "isOperator", type: "checkbox", checked: me.isOpen }), " Operator: sees all tenants, makes keys"),
    ]
    let made = null
    await dialog("New key", content, {
      confirm: "Make it",
      act: async (form) => {
        const number = (name) => (form.get(name) ? Number(form.get(name)) : null)
        const upstreams = form.get("upstreams").split(",").map((text) => text.trim()).filter(Boolean)
        made = await post("/api/keys", {
          name: form.get("name") || null,
          tenant: form.get("tenant"),
          isOperator: Boolean(form.get("isOperator")),
          maxRunning: number("maxRunning"),
          maxPerMinute: number("maxPerMinute"),
          seconds: number("seconds"),
          upstreams: upstreams.length ? upstreams : null,
        })
      },
    })
    if (!made) return
    await dialog("Keep this key", [h("p", {}, "It is stored as a hash, and cannot be shown again."), h("textarea", { readonly: true, rows: 3, "aria-label": "The new key" }, made.key)])
    await refresh()
  }

  async function revokeKey(key) {
    const text = h("p", {}, `Whoever uses ${key.name ?? key.id} is refused within five seconds.`)
    if (!(await dialog("Revoke this key?", text, { confirm: "Revoke", danger: true, act: () => post(`/api/keys/${key.id}/revoke`) }))) return
    tell("Revoked")
    await refresh()
  }
}

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, String(value)))
}
