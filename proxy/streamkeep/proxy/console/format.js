// Numbers and instants as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"]

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–"
  let unit = 0
  let value = bytes
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024
    unit += 1
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`
}

export function duration(milliseconds) {
  const seconds = Math.max(0, milliseconds) / 1000
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`
  return `${Math.floor(seconds / 86400)} d`
}

export function age(instant, now = Date.now()) {
  const milliseconds = now - Date.parse(instant)
  return milliseconds < 1000 ? "now" : duration(Math.floor(milliseconds / 1000) * 1000).replace(".0", "")
}

export function moment(instant) {
  return instant === null || instant === undefined ? "–" : new Date(instant).toLocaleString()
}

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined || Number.isNaN(perSecond)) return "–"
  return perSecond >= 10 ? String(Math.round(perSecond)) : perSecond.toFixed(1)
}

export function tokens(usage) {
  if (!usage) return "–"
  return `${usage.inputTokens ?? "?"} in, ${usage.outputTokens ?? "?"} out`
}

/** A name from elsewhere, with the characters in it that nobody can see, or that turn a text around, spelt out. */
export function visible(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (character) => `\\u{${character.codePointAt(0).toString(16)}}`)
}

/** A text as one word of a shell. */
export function quoted(text) {
  return `'${String(text).replaceAll("'", `'\\''`)}'`
}
