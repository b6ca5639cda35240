// The parts that the published package makes of chunks: `node session_parts.mjs FILE`, which holds an array of arrays of chunks.
import { readFileSync } from "node:fs"
import { StreamProcessor } from "@tanstack/ai-chunks"

function parts(steps) {
  const processor = new StreamProcessor()
  processor.startAssistantMessage()
  for (const step of steps) {
    if (step.type === "tool-result") processor.addToolResult(step.toolCallId, step.output, step.error ?? undefined)
    else if (step.type === "approval-response") processor.addToolApprovalResponse(step.approvalId, step.approved)
    else processor.processChunk(step)
  }
  return processor.getMessages()[0].parts
}

console.log(JSON.stringify(JSON.parse(readFileSync(process.argv[2], "utf8")).map(parts)))
