// What one says of an answer, what that will do, and when it has taught. Generates nothing.

import { call } from './api.js'
import { action, el, fill, icon, plural, problem, say } from './dom.js'
import { listen, now } from './live.js'

/** Answers whose feedback waits to be used; the oldest are no longer asked about. */
const waiting = new Map()
const MOST_WAITING = 200

listen(kind => {
  if (['step_done', 'step_dropped', 'version_published', 'version_refused'].includes(kind)) look()
})

// Who may not listen looks now and then.
setInterval(() => { if (now.client) look() }, 20_000)

/** Asks what became of the feedback that waits. */
async function look() {
  for (const [id, { feedback, line }] of waiting) {
    const record = await call(`v1/generations/${encodeURIComponent(id)}`).catch(() => null)
    const used = record?.feedback.filter(said => feedback.has(said.feedback_id) && said.used_by).at(-1)?.used_by
    if (!used) continue
    waiting.delete(id)
    const text = used.version === undefined ? `It taught nothing: ${used.skipped}.` : `It has taught: in version ${used.version}.`
    fill(line, text)
    line.classList.add('taught')
    say(text)
  }
}

function wait(id, feedback, line) {
  const known = waiting.get(id) ?? { feedback: new Set(), line }
  waiting.delete(id)
  waiting.set(id, { feedback: known.feedback.add(feedback), line })
  if (waiting.size > MOST_WAITING) waiting.delete(waiting.keys().next().value)
}

/** What a rating will do, after it was kept. */
function willDo(receipt) {
  if (receipt.left_out) return `Kept, but it does not count: ${receipt.left_out}.`
  const { trainer } = now.status ?? {}
  const again = receipt.replaces_earlier ? 'Kept in place of what you said before' : 'Kept'
  if (now.client) return `${again}. ${now.props?.learning.enabled ? `The model learns whenever ${plural(now.props.learning.batch, 'rating')} are in.` : 'Training is off, so it teaches nothing now.'}`
  if (!trainer || trainer.state === 'off') return `${again}. Training is off, so it teaches nothing now.`
  if (trainer.state === 'unsupported') return `${again}. This model is served and not trained: ${trainer.reason}.`
  if (now.props?.learning.quarantine) return `${again}. It waits ${now.props.learning.quarantine} seconds before it is used.`
  return `${again}: ${progress(trainer)}.`
}

function progress({ pending_ratings: have, batch, auto, state }) {
  if (state === 'training') return 'a step is running, the next one may use it'
  if (have >= batch) return auto ? 'enough are in, the next step begins' : 'enough are in, a step begins when someone asks for it'
  const missing = batch - have
  return `${have} of ${plural(batch, 'rating')} are in, ${missing} more begin${missing === 1 ? 's' : ''} the next step`
}

/** What a correction or a preference will do. */
function pairWillDo() {
  const pairs = now.props?.learning.pairs ?? 0
  if (!pairs) return 'Kept as a pair. No reward model learns from pairs here (reward.learn).'
  return `Kept as a pair for the reward model, which learns when there are ${pairs} new ones; it does not change the answers by itself.`
}

/** Says one thing of an answer; the receipt. */
async function tell(answer, user, said) {
  return call('v1/feedback', { generation_id: answer.id, ...said, ...(user && { user }) })
}

/**
 * The buttons below an answer, and the line that says what they did.
 * `on` has `another()`, `fixed(text)`, `user()`.
 */
export function ratingOf(answer, on) {
  const line = el('p', { class: 'effect', role: 'status' })
  const extra = el('div')
  const thumbs = ['up', 'down'].map(thumb => {
    const button = action(icon(thumb), { class: 'plain', 'aria-pressed': 'false', 'aria-label': thumb === 'up' ? 'Good answer' : 'Bad answer',
      title: thumb === 'up' ? 'Good answer' : 'Bad answer' }, () => line, async () => {
      const receipt = await tell(answer, on.user(), { thumbs: thumb })
      thumbs.forEach(other => other.setAttribute('aria-pressed', String(other === button)))
      wait(answer.id, receipt.feedback_id, line)
      line.classList.remove('taught')
      // The count in the header is told once a second; this rating is in already.
      const fresh = now.status && await call('v1/trainer').catch(() => null)
      if (fresh) now.status.trainer = fresh
      fill(line, willDo(receipt))
    })
    return button
  })
  const fix = el('button', { type: 'button', class: 'plain', 'aria-expanded': 'false', onclick: () => correct() }, icon('fix'), 'Fix it')
  const another = action([icon('another'), 'Another'], { class: 'plain' }, () => line, () => on.another())
  const copy = action([icon('copy'), 'Copy'], { class: 'plain' }, () => line, async () => {
    await navigator.clipboard.writeText(answer.text)
    fill(line, 'Copied.')
  })

  function correct() {
    const open = extra.childElementCount > 0
    fix.setAttribute('aria-expanded', String(!open))
    if (open) return fill(extra)
    const text = el('textarea', { rows: '4', 'aria-label': 'The answer as it should have been', maxlength: '60000' })
    text.value = answer.text
    const done = action('Save the correction', { class: 'main' }, () => line, async () => {
      const said = text.value.trim()
      if (!said || said === answer.text) return problem(line, new Error('The correction is empty or the same as the answer.'))
      const receipt = await tell(answer, on.user(), { correction: said })
      fill(extra)
      fix.setAttribute('aria-expanded', 'false')
      fix.focus()
      const teaches = (now.props?.learning.correction ?? 0) > 0
      if (teaches && !receipt.left_out) wait(answer.id, receipt.feedback_id, line)
      fill(line, receipt.left_out || teaches ? willDo(receipt) : pairWillDo(), ' The talk goes on from your words.')
      on.fixed(said)
    })
    fill(extra, el('div', { class: 'fix' }, text, el('p', { class: 'row' },
      el('button', { type: 'button', onclick: () => { correct(); fix.focus() } }, 'Cancel'), done)))
    text.focus()
  }

  return el('div', { class: 'rating' }, el('p', { class: 'tools', role: 'group', 'aria-label': 'About this answer' }, thumbs, fix, another, copy), extra, line)
}

/** Says that one answer is better than another; what that will do, in words. */
export async function prefer(chosen, rejected, user) {
  await call('v1/preferences', { chosen_id: chosen.id, rejected_id: rejected.id, ...(user && { user }) })
  return pairWillDo()
}
