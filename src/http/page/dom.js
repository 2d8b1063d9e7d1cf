// Makes elements. Texts become text nodes, never markup: what a model or a user wrote can't be run.

/** An element with attributes, listeners (`onclick: function`) and children (elements, texts, arrays; null is left out). */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name)
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue
    if (key.startsWith('on')) made.addEventListener(key.slice(2), value)
    else made.setAttribute(key, value === true ? '' : value)
  }
  made.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false))
  return made
}

/** Replaces what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false))
  return element
}

export const byId = id => document.getElementById(id)

const PATHS = {
  up: ['M7 10v11', 'M7 10l4-7c1.7 0 2.6 1.3 2.3 2.8L12.6 9H19a2 2 0 0 1 2 2.4l-1.4 7A2 2 0 0 1 17.6 20H7'],
  down: ['M7 14V3', 'M7 14l4 7c1.7 0 2.6-1.3 2.3-2.8L12.6 15H19a2 2 0 0 0 2-2.4l-1.4-7A2 2 0 0 0 17.6 4H7'],
  fix: ['M4 20h4L19 9l-4-4L4 16z', 'M13 7l4 4'],
  another: ['M20 11a8 8 0 1 0-2.3 6.3', 'M20 4v7h-7'],
  copy: ['M9 9h11v11H9z', 'M5 15H4V4h11v1'],
}

/** A drawing of 18 pixels that screen readers skip; the button around it has the words. */
export function icon(name) {
  const space = 'http://www.w3.org/2000/svg'
  const drawing = document.createElementNS(space, 'svg')
  for (const [key, value] of Object.entries({ viewBox: '0 0 24 24', class: 'icon', 'aria-hidden': 'true' })) drawing.setAttribute(key, value)
  for (const d of PATHS[name]) drawing.appendChild(document.createElementNS(space, 'path')).setAttribute('d', d)
  return drawing
}

/** Says something to screen readers. */
export function say(text) {
  byId('said').textContent = text
}

/** A wide thing that scrolls by itself, with the keyboard too. */
export const scrolls = (label, wide) => el('div', { class: 'scroll', tabindex: '0', role: 'group', 'aria-label': label }, wide)

/** Asks before something that changes what everyone gets; resolves to whether to do it. */
export function confirmed(title, text, yes) {
  const dialog = byId('ask')
  byId('ask-title').textContent = title
  byId('ask-text').textContent = text
  byId('ask-yes').textContent = yes
  dialog.returnValue = 'no'
  dialog.showModal()
  return new Promise(resolve => dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true }))
}

/** A button that can't be pressed twice while what it started runs; an error is shown in `place`. */
export function action(label, attributes, place, work) {
  const button = el('button', { type: 'button', ...attributes, onclick: async () => {
    button.disabled = true
    try {
      await work()
    } catch (error) {
      problem(place(), error)
    } finally {
      button.disabled = false
    }
  } }, label)
  return button
}

/** Shows an error where it belongs, and says it. */
export function problem(place, error) {
  fill(place, el('p', { class: 'notice bad', role: 'alert' }, error.message))
}

// Numbers and times as people read them.

export const number = (value, digits = 2) =>
  value === null || value === undefined || !Number.isFinite(value) ? '–' : value.toFixed(digits).replace(/^-(0(\.0*)?)$/, '$1').replace('-', '\u2212')

export const percent = value => value === null || value === undefined ? '–' : `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`

/** A mean with its 95% interval and the number of observations. */
export function interval(figure, show = number) {
  if (!figure) return '–'
  const bounds = figure.lower === null ? '' : ` [${show(figure.lower)}, ${show(figure.upper)}]`
  return `${show(figure.mean)}${bounds}`
}

export function bytes(count) {
  if (count === null || count === undefined) return '–'
  const units = ['B', 'KB', 'MB', 'GB', 'TB']
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(count, 1)) / 3))
  return `${(count / 1000 ** power).toFixed(power && count / 1000 ** power < 10 ? 1 : 0)} ${units[power]}`
}

export function seconds(count) {
  if (count < 1) return `${(1000 * count).toFixed(0)} ms`
  if (count < 120) return `${count.toFixed(count < 10 ? 1 : 0)} s`
  return count < 7200 ? `${(count / 60).toFixed(0)} min` : `${(count / 3600).toFixed(1)} h`
}

/** A moment, with the day where it isn't today. */
export function when(millis) {
  const date = new Date(millis)
  const today = date.toDateString() === new Date().toDateString()
  const time = date.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' })
  const shown = today ? time : `${date.toLocaleDateString([], { month: 'short', day: 'numeric' })}, ${time}`
  return el('time', { datetime: date.toISOString(), title: date.toLocaleString() }, shown)
}

/** `count` things, in English. */
export const plural = (count, one, many = one + 's') => `${count} ${count === 1 ? one : many}`
