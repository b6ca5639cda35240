// All demos, and which of them this server shows.
import { find, h } from "./dom.js"

const { demo, demos } = await (await fetch("/config.json")).json()

find("demos").append(
  ...demos.map(({ name, title, summary, command, port }) =>
    h(
      "li",
      { class: "panel" },
      h("h2", {}, title),
      h("p", {}, summary),
      h("pre", {}, h("code", {}, command)),
      name === demo ? h("p", {}, h("a", { href: "/" }, "Open it"), " ", h("span", { class: "pill running" }, "runs here")) : h("p", { class: "dim" }, port ? `Its page is on port ${port}.` : "It shows itself in the terminal."),
    ),
  ),
)
