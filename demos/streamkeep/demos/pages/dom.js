// Elements out of data. Texts become text nodes and nothing else: what a model says can be shown, and cannot run.

/** Make an element. `on` are its listeners; an attribute that is false, null or undefined is left out. */
export function h(tag, { on = {}, ...attributes } = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value)
  }
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener)
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false))
  return element
}

export const find = (id) => document.getElementById(id)

/** Put elements in place, and touch only what is not there yet. */
export function place(parent, wanted) {
  wanted.forEach((element, index) => {
    const there = parent.children[index]
    if (there === element) return
    if (there) there.replaceWith(element)
    else parent.append(element)
  })
  while (parent.children.length > wanted.length) parent.lastChild.remove()
}

/** Run something once, however often it was wanted, before the page is drawn next. */
export function beforeDrawing(action) {
  let isWanted = false
  return () => {
    if (isWanted) return
    isWanted = true
    // A page that nobody sees is not drawn, and goes on all the same.
    const soon = document.hidden ? setTimeout : requestAnimationFrame
    soon(() => {
      isWanted = false
      action()
    })
  }
}
