// Two versions answer one prompt beside each other, with the same seed. The answers are on record like any.

import { facts, generate, versionOptions } from './answer.js'
import { action, el, fill, problem } from './dom.js'
import { now } from './live.js'
import { prefer } from './rating.js'

export function openCompare() {
  const [first, second] = ['First version', 'Second version'].map(label => el('select', { 'aria-label': label }))
  const prompt = el('textarea', { rows: '2', 'aria-label': 'Prompt for both', placeholder: 'A prompt for both' })
  const out = el('div', { class: 'answers two' })
  const line = el('div', { class: 'effect', role: 'status' })
  let running = null
  let chosen = false
  for (const select of [first, second]) select.addEventListener('change', () => { chosen = true })
  const stop = el('button', { type: 'button', hidden: true, onclick: () => running?.abort() }, 'Stop')
  const ask = action('Ask both', { class: 'main' }, () => line, async () => {
    const content = prompt.value.trim()
    if (!content) throw new Error('The prompt is empty.')
    fill(line)
    running = new AbortController()
    stop.hidden = false
    const seed = Math.floor(Math.random() * 2 ** 31)
    const columns = [first.value, second.value].map(version => {
      const view = el('p', { class: 'text' })
      const box = el('article', { class: 'answer', 'aria-label': `Answer of version ${version}` }, el('h4', {}, `Version ${version}`), view)
      return { version, view, box }
    })
    fill(out, columns.map(column => column.box))
    try {
      // One after the other: a version that isn't served has to be brought in, and only one at a time is.
      for (const column of columns) {
        const body = { messages: [{ role: 'user', content }], stream: true, stream_options: { include_usage: true }, seed, model: `${now.status?.model ?? ''}@${column.version}` }
        column.answer = await generate(body, column.view, running.signal)
        column.box.append(facts(column.answer))
      }
    } finally {
      stop.hidden = true
    }
    if (columns.some(column => column.answer.finish === 'stopped' || !column.answer.recorded)) return
    const pick = (chosen, rejected) => action(`Version ${chosen.version} is better`, { class: 'small' }, () => line, async () => {
      fill(line, await prefer(chosen.answer, rejected.answer, null))
      chosen.box.classList.add('chosen')
      rejected.box.classList.remove('chosen')
    })
    const [a, b] = columns
    a.box.append(el('p', { class: 'row' }, pick(a, b)))
    b.box.append(el('p', { class: 'row' }, pick(b, a)))
  })
  prompt.addEventListener('keydown', event => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault()
      ask.click()
    }
  })
  const element = el('section', { class: 'card wide', 'aria-label': 'Two versions beside each other' }, el('h3', {}, 'Two versions beside each other'),
    el('div', { class: 'row' }, el('label', {}, 'Version ', first), el('label', {}, 'and version ', second)),
    prompt, el('p', { class: 'row' }, ask, stop), line, out)

  return {
    element,
    /** Lists the versions anew, and keeps what was chosen; else the one that serves, and before it the newest other one. */
    async versions() {
      const [a, b] = [first.value, second.value]
      try {
        const options = await versionOptions()
        fill(first, options.map(option => option.cloneNode(true)))
        fill(second, options)
        const values = options.map(option => option.value)
        const active = options.find(option => option.hasAttribute('data-serves'))?.value ?? values[0]
        const keeps = chosen && values.includes(a) && values.includes(b)
        first.value = keeps ? a : values.find(value => value !== active) ?? active
        second.value = keeps ? b : active
      } catch (error) {
        problem(line, error)
      }
    },
  }
}
