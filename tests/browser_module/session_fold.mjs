// Sessions as the module folds them: `node session_fold.mjs FILE`, which holds an array of `{events, sizes}`.
import { readFileSync } from "node:fs"
import { SessionFold } from "./modules/streamkeep-session-fold.js"

const NAMES = ["messages", "toolCalls", "toolResults", "approvals", "activeGenerations", "agents", "presence", "participants"]
const OF_TURNS = ["turns", "pendingTurns", "session"]

function folded({ events, sizes }) {
  let fold = new SessionFold()
  let at = 0
  const changes = [...sizes, events.length].map((size) => {
    const end = Math.min(at + size, events.length)
    const found = fold.apply(events.slice(at, end), String(end).padStart(4, "0"))
    at = end
    // A copy out of a cache goes on as the first would have.
    fold = SessionFold.from(fold.snapshot())
    return found
  })
  const told = Object.fromEntries([...NAMES, ...OF_TURNS, "statistics", "position", "offset"].map((name) => [name, fold[name]]))
  const byId = fold.messages.map(({ id }) => fold.message(id) === fold.message(id))
  return { ...told, changes, areSame: byId.every(Boolean) }
}

console.log(JSON.stringify(JSON.parse(readFileSync(process.argv[2], "utf8")).map(folded)))
