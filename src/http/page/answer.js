// One answer: how it is made, what is to know of it, and which versions may give it. Rates nothing.

import { call, events } from './api.js'
import { el, plural } from './dom.js'

/** Generates one answer into `view`; resolves to it. */
export async function generate(body, view, signal) {
  const answer = { id: null, text: '', version: null, finish: null, tokens: null, recorded: true, thought: null }
  let failed = null
  view.setAttribute('aria-busy', 'true')
  view.classList.add('running')
  try {
    await events('v1/chat/completions', {
      body, signal,
      on(_, data) {
        if (data === '[DONE]') return
        const chunk = JSON.parse(data)
        if (chunk.usage) answer.tokens = chunk.usage.completion_tokens
        if (chunk.error) failed = new Error(chunk.error.message)
        const choice = chunk.choices[0]
        if (!choice) return
        answer.id = choice.generation_id ?? answer.id
        answer.version = chunk.policy_version ?? answer.version
        answer.finish = choice.finish_reason ?? answer.finish
        if (choice.recorded === false) answer.recorded = false
        const thought = choice.delta?.reasoning_content
        if (thought) {
          if (!answer.thought) {
            answer.thought = el('span', {})
            view.before(el('details', { class: 'thought' }, el('summary', {}, 'What it thought'), answer.thought))
          }
          answer.thought.append(thought)
        }
        const piece = choice.delta?.content
        if (piece) {
          answer.text += piece
          view.append(piece)
        }
      },
    })
  } catch (error) {
    if (error.name !== 'AbortError') failed = error
    answer.finish = 'stopped'
  } finally {
    view.removeAttribute('aria-busy')
    view.classList.remove('running')
  }
  if (!failed && answer.finish === null) failed = new Error('The answer ended too early: the service closed the connection.')
  if (failed) throw failed
  return answer
}

/** What is to know of an answer, in a line. */
export function facts(answer) {
  return el('p', { class: 'facts' },
    answer.version !== null && el('span', {}, `version ${answer.version}`),
    answer.tokens !== null && el('span', {}, plural(answer.tokens, 'token')),
    answer.finish === 'length' && el('span', { class: 'warn' }, 'cut off: it reached the most tokens'),
    answer.finish === 'stopped' && el('span', { class: 'warn' }, 'stopped'),
    !answer.recorded && el('span', { class: 'warn' }, 'not recorded, so it can\u2019t be rated'))
}

/** Options of a `select` for all versions, the newest first. */
export async function versionOptions() {
  const { data: cards } = await call('v1/models')
  const [{ id: name, policy_version: active }] = cards
  const versions = cards.filter(({ id, policy_version: version }) => id === `${name}@${version}`)
  return versions.map(({ policy_version: version }) => el('option', { value: String(version), 'data-serves': version === active }, `${version}${version === 0 ? ', the initial model' : ''}${version === active ? ', serves' : ''}`))
}
