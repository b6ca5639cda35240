// Markdown as elements: the common forms, and no HTML. What it does not know stays the text that it is.
import { h } from "./dom.js"

const FENCE = /^```\s*([\w+-]*)/
const HEADING = /^(#{1,4})\s+(.*)$/
const QUOTE = /^>\s?/
const BULLET = /^\s*[-*+]\s+/
const NUMBER = /^\s*\d{1,9}[.)]\s+/
const RULE = /^(?:-{3,}|\*{3,})\s*$/
const DIVIDER = /^\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/
const BEGINS = [FENCE, HEADING, QUOTE, BULLET, NUMBER, RULE]

/** The blocks of a text; one that is still being written may end anywhere. */
export function markdown(text) {
  const lines = text.split("\n")
  const blocks = []
  const take = (isPart) => {
    const taken = []
    while (lines.length && isPart(lines[0])) taken.push(lines.shift())
    return taken
  }
  while (lines.length) {
    const [line] = lines
    if (line.trim() === "") lines.shift()
    else if (FENCE.test(line)) {
      lines.shift()
      const code = take((each) => !FENCE.test(each))
      lines.shift()
      blocks.push(h("pre", {}, h("code", {}, code.join("\n"))))
    } else if (HEADING.test(line)) {
      const [, marks, title] = HEADING.exec(lines.shift())
      blocks.push(h(`h${marks.length + 1}`, {}, inline(title)))
    } else if (QUOTE.test(line)) {
      const quoted = take((each) => QUOTE.test(each)).map((each) => each.replace(QUOTE, ""))
      blocks.push(h("blockquote", {}, inline(quoted.join(" "))))
    } else if (RULE.test(line)) {
      lines.shift()
      blocks.push(h("hr"))
    } else if (BULLET.test(line)) blocks.push(list("ul", BULLET, take))
    else if (NUMBER.test(line)) blocks.push(list("ol", NUMBER, take))
    else if (line.includes("|") && DIVIDER.test(lines[1] ?? "")) blocks.push(table(take((each) => each.includes("|"))))
    else {
      const first = lines.shift()
      const more = take((each) => each.trim() !== "" && !BEGINS.some((form) => form.test(each)))
      blocks.push(h("p", {}, inline([first, ...more].join("\n"))))
    }
  }
  return blocks
}

function list(tag, mark, take) {
  const items = []
  for (const line of take((each) => mark.test(each) || (each.trim() !== "" && /^\s{2,}/.test(each)))) {
    if (mark.test(line)) items.push(line.replace(mark, ""))
    else items.push(`${items.pop() ?? ""} ${line.trim()}`)
  }
  return h(tag, {}, items.map((item) => h("li", {}, inline(item))))
}

function table([head, , ...rows]) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim())
  const row = (line, tag) => h("tr", {}, cells(line).map((cell) => h(tag, {}, inline(cell))))
  return h("table", {}, h("thead", {}, row(head, "th")), h("tbody", {}, rows.map((line) => row(line, "td"))))
}

const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/

function inline(text) {
  const pieces = []
  let rest = text
  for (let found; (found = INLINE.exec(rest)); rest = rest.slice(found.index + found[0].length)) {
    const [, code, strong, slanted, label, url] = found
    pieces.push(rest.slice(0, found.index))
    if (code) pieces.push(h("code", {}, code))
    else if (strong) pieces.push(h("strong", {}, strong))
    else if (slanted) pieces.push(h("em", {}, slanted))
    else pieces.push(h("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, label))
  }
  return [...pieces, rest]
}
