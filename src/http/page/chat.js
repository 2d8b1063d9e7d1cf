// A conversation with the served model: answers as they are made, and what one says of them.

import { facts, generate, versionOptions } from './answer.js'
import { action, el, fill, number, problem, say } from './dom.js'
import { changesVersions, listen, now } from './live.js'
import { prefer, ratingOf } from './rating.js'

const FIELDS = [
  ['temperature', 'Temperature', { min: 0, max: 10, step: 'any' }],
  ['top_p', 'Top-p', { min: 0, max: 1, step: 'any' }],
  ['top_k', 'Top-k', { min: 0, max: 1048576, step: 1 }],
  ['min_p', 'Min-p', { min: 0, max: 1, step: 'any' }],
  ['max_tokens', 'Most tokens', { min: 1, max: 4294967295, step: 1 }],
  ['seed', 'Seed', { step: 1 }],
]

/** The body of a request for the given messages. Fields that were left empty are the service's to choose. */
function bodyOf(messages, form, version) {
  const body = { messages, stream: true, stream_options: { include_usage: true } }
  for (const [name] of FIELDS) {
    const value = form.elements[name].value.trim()
    if (value !== '') body[name] = Number(value)
  }
  const user = form.elements.user.value.trim()
  if (user) body.user = user
  if (version !== '') body.model = `${now.status?.model ?? ''}@${version}`
  return body
}

export function openChat(place) {
  let messages = []
  let running = null

  const log = el('ol', { class: 'talk', 'aria-label': 'Conversation' })
  const empty = el('div', { class: 'empty' }, el('h2', {}, 'Ask something'),
    el('p', {}, 'Rate the answers: when enough ratings are in, the model learns from them, and a new version answers.'))
  const trouble = el('div')
  const text = el('textarea', { id: 'question', rows: '1', 'aria-label': 'Your message', placeholder: 'Message', enterkeyhint: 'send' })
  const send = el('button', { type: 'submit', class: 'main' }, 'Send')
  const stop = el('button', { type: 'button', class: 'main', hidden: true, onclick: () => running?.abort() }, 'Stop')
  const fresh = el('button', { type: 'button', class: 'plain', onclick: begin }, 'New chat')
  const version = el('select', { name: 'version' }, el('option', { value: '' }, 'the one that serves'))
  const form = el('form', { class: 'composer', onsubmit: event => { event.preventDefault(); ask() } },
    trouble, el('div', { class: 'write' }, text, send, stop),
    el('div', { class: 'below' },
      el('details', { class: 'settings' }, el('summary', {}, 'Settings'),
        el('div', { class: 'fields' },
          el('label', {}, 'Version ', version),
          FIELDS.map(([name, label, limits]) => el('label', {}, label, el('input', { name, type: 'number', inputmode: 'decimal', ...limits, placeholder: placeholder(name) }))),
          el('label', {}, 'Your name ', el('input', { name: 'user', maxlength: '256', autocomplete: 'off', placeholder: 'nobody in particular' })),
          el('label', { class: 'wide' }, 'Instruction for the whole chat ', el('textarea', { name: 'system', rows: '2' })))),
      fresh))
  fill(place, log, empty, form)
  text.focus()

  text.addEventListener('keydown', event => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault()
      form.requestSubmit()
    }
  })
  text.addEventListener('input', grow)
  place.addEventListener('keydown', event => {
    if (event.key === 'Escape') running?.abort()
  })

  function grow() {
    text.rows = Math.min(8, Math.max(1, text.value.split('\n').length))
  }

  const user = () => form.elements.user.value.trim()

  function begin() {
    running?.abort()
    messages = []
    fill(log)
    fill(trouble)
    empty.hidden = false
    text.focus()
  }

  function busy(is) {
    send.hidden = is
    stop.hidden = !is
    fresh.disabled = is
  }

  /** Keeps the end in sight while one is there, and leaves those alone who read above. */
  function atEnd() {
    return innerHeight + scrollY >= document.documentElement.scrollHeight - 80
  }
  const toEnd = () => scrollTo({ top: document.documentElement.scrollHeight })
  new MutationObserver(() => { if (running && follows) toEnd() }).observe(log, { childList: true, subtree: true, characterData: true })
  let follows = true
  addEventListener('scroll', () => { if (running) follows = atEnd() }, { passive: true })

  /** The messages that come before an answer, the instruction first. */
  function before(count) {
    const system = form.elements.system.value.trim()
    return [...(system ? [{ role: 'system', content: system }] : []), ...messages.slice(0, count)]
  }

  async function ask() {
    const question = text.value.trim()
    if (!question || running) return
    fill(trouble)
    empty.hidden = true
    messages.push({ role: 'user', content: question })
    const turn = el('li', { class: 'turn' })
    const asked = el('div', { class: 'asked' }, el('span', { class: 'unseen' }, 'You: '), el('p', {}, question))
    const answers = el('div', { class: 'answers' })
    turn.append(asked, answers)
    log.append(turn)
    text.value = ''
    grow()
    follows = true
    const made = await add(answers, messages.length)
    if (made) {
      messages.push({ role: 'assistant', content: made.text })
    } else {
      messages.pop()
      turn.remove()
      text.value = question
      grow()
    }
  }

  /** Adds an answer to the first `count` messages; null if there came none. */
  async function add(answers, count) {
    const view = el('p', { class: 'text' })
    const box = el('article', { class: 'answer', 'aria-label': 'Answer' }, view)
    answers.append(box)
    running = new AbortController()
    busy(true)
    toEnd()
    try {
      const answer = await generate(bodyOf(before(count), form, version.value), view, running.signal)
      if (!answer.id || (answer.finish === 'stopped' && !answer.text)) throw new Error('It was stopped before the first word.')
      if (!answer.text) view.append(el('em', {}, 'an empty answer'))
      box.append(facts(answer))
      const at = count
      if (answer.recorded) {
        answer.rating = ratingOf(answer, {
          user,
          another: () => again(answers, at, answer),
          fixed(said) { if (messages[at]) messages[at].content = said },
        })
        box.append(answer.rating)
      }
      answer.box = box
      say(`Answer: ${answer.text.slice(0, 600)}`)
      return answer
    } catch (error) {
      box.remove()
      problem(trouble, error)
      return null
    } finally {
      running = null
      busy(false)
      // What stands below an answer came after its last word.
      if (follows) toEnd()
      text.focus({ preventScroll: true })
    }
  }

  /** A second answer beside the first: which one is better? */
  async function again(answers, at, first) {
    if (running) throw new Error('An answer is being written; stop it first.')
    answers.querySelectorAll('.answer').forEach(box => { if (box !== first.box) box.remove() })
    answers.querySelector('.choice')?.remove()
    answers.classList.add('two')
    const second = await add(answers, at)
    if (!second) {
      answers.classList.remove('two')
      return
    }
    const line = el('p', { class: 'effect', role: 'status' }, 'Which one is better?')
    const pick = (label, chosen, rejected) => action(label, { class: 'main' }, () => line, async () => {
      const effect = await prefer(chosen, rejected, user())
      chosen.box.classList.add('chosen')
      rejected.box.classList.add('rejected')
      chosen.box.classList.remove('rejected')
      rejected.box.classList.remove('chosen')
      if (messages[at]) messages[at].content = chosen.text
      fill(line, `${effect} The talk goes on from the one that you chose.`)
    })
    answers.append(el('div', { class: 'choice', role: 'group', 'aria-label': 'Which answer is better?' },
      line, el('p', { class: 'row' }, pick('The first is better', first, second), pick('The second is better', second, first))))
    if (messages[at]) messages[at].content = second.text
  }

  async function choices() {
    const chosen = version.value
    fill(version, el('option', { value: '' }, 'the one that serves'), await versionOptions())
    if ([...version.options].some(option => option.value === chosen)) version.value = chosen
  }
  choices().catch(error => problem(trouble, error))
  listen(kind => { if (changesVersions(kind)) choices().catch(() => {}) })

  return { shown: () => text.focus({ preventScroll: true }) }
}

function placeholder(name) {
  const params = now.props?.default_generation_settings.params ?? {}
  if (name === 'seed') return 'another each time'
  if (name === 'max_tokens') return params.n_predict === undefined ? '' : String(params.n_predict)
  return params[name] === undefined ? '' : number(params[name], 2).replace(/\.?0+$/, '') || '0'
}
