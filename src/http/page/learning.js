// How learning goes: the trainer and what it costs, figures by version, what waits for a person, what happened.

import { call } from './api.js'
import { action, bytes, confirmed, el, fill, number, percent, plural, problem, scrolls, seconds, when } from './dom.js'
import { changesVersions, inWords, listen, now } from './live.js'
import { Plot } from './plots.js'

const MOST_TOLD = 100
const PAST = { promoted: 'was promoted', refused: 'was refused', trial: 'went on trial', proposed: 'waits for a decision', rolled_back: 'was taken back',
  unlearned: 'was removed' }
/** Fewest tokens, with and without training beside them, from which on the two are compared. */
const FEWEST = 200

export function openLearning(place) {
  const trouble = el('div')
  const step = action('Train now', {}, () => trouble, async () => {
    fill(trouble)
    const outcome = await call('v1/trainer/step', {})
    fill(trouble, el('p', { class: 'notice', role: 'status' }, outcomeWords(outcome)))
  })
  const ratings = el('progress', { 'aria-label': 'Ratings for the next step' })
  const shown = {
    trainer: new Card('Trainer', ratings, el('p', { class: 'row' }, step)), made: new Card('Since the start'), cost: new Card('What training costs answers'),
    serving: new Card('Serving'), reward: new Card('Reward model'), disk: new Card('Disk'),
  }
  const cards = el('div', { class: 'cards' }, Object.values(shown).map(card => card.element))
  const trial = el('div')
  const waits = el('div', { class: 'stack' })
  const told = el('ol', { class: 'told' })
  const nothing = el('p', { class: 'soft' }, 'What happens from now on is listed here.')
  const plots = {
    rating: new Plot('Rating', 'What people gave the answers, from \u22121 to 1.'),
    kl: new Plot('KL to the initial model', 'Nats a response, measured on the batch that a version was trained on next, or right after its own.', value => number(value, 3)),
    tokens: new Plot('Length', 'Tokens an answer.', value => number(value, 0)),
    cut_off: new Plot('Cut off', 'Answers that reached the most tokens.', percent),
  }
  fill(place, trouble,
    el('h2', {}, 'Now'), cards, trial,
    el('h2', {}, 'By version'), el('p', { class: 'soft' }, 'Means with 95% intervals, over the newest 20,000 answers and ratings.'),
    el('div', { class: 'plots' }, Object.values(plots).map(plot => plot.element)),
    el('h2', {}, 'Waiting for you'), waits,
    el('h2', {}, 'What happened'), nothing, told)

  let speed = null

  function showStatus() {
    const status = now.status
    if (!status) return
    const { trainer } = status
    const at = performance.now()
    const rate = speed && at > speed.at ? Math.max(0, (status.generated_tokens - speed.tokens) / ((at - speed.at) / 1000)) : 0
    speed = { at, tokens: status.generated_tokens }
    const gap = mean(status.gap)
    const beside = mean(status.gap_training)
    const enough = count(status.gap) >= FEWEST && count(status.gap_training) >= FEWEST
    const slower = enough ? `${number(beside / gap, 1)} times as long` : 'not measured yet'
    ratings.max = trainer.batch
    ratings.value = Math.min(trainer.pending_ratings, trainer.batch)
    const have = trainer.pending_ratings < trainer.batch ? `${trainer.pending_ratings} of ${plural(trainer.batch, 'rating')} for the next step`
      : `${plural(trainer.pending_ratings, 'rating')} in, a step takes ${trainer.batch}`
    shown.trainer.set(trainerWords(trainer), [], `${have}${trainer.auto ? '' : '; it begins only when asked for'}`)
    shown.made.set(`${plural(trainer.steps, 'version')} made`,
      [['refused', trainer.refused], ['skipped', trainer.skipped], ['taken back', trainer.rolled_back], ['stopped by a bug', trainer.panics]])
    shown.cost.set(slower, [['a token takes', gap ? seconds(gap) : '–'], ['while training', beside ? seconds(beside) : '–'],
      ['the trainer worked', seconds(trainer.seconds)], ['its threads waited', seconds(trainer.waited_seconds)]])
    shown.serving.set(`${number(rate, 0)} tokens a second`,
      [['being answered', status.running], ['waiting', status.queued], ['first word after', seconds(mean(status.first_token) ?? 0)], ['answers so far', status.completed]])
    shown.reward.set(trainer.reward.version ? `version ${trainer.reward.version}` : now.props?.learning.judged_by_model ? 'as given in the settings' : 'none yet',
      [['right on unseen pairs', trainer.reward.accuracy === null ? '–' : percent(trainer.reward.accuracy)], ['pairs so far', trainer.reward.pairs]],
      trainer.reward.last ?? '')
    showTrial(trainer.trial)
  }

  async function showDisk() {
    const { disk: use } = await call('v1/status')
    shown.disk.set(`${bytes(use.free)} free`, [['record', bytes(use.ledger)], ['versions', bytes(use.versions)],
      ['of that, to resume', bytes(use.states)], ['set aside', bytes(use.aside)], ['reward models', bytes(use.reward)], ['other', bytes(use.other)]])
  }

  function showTrial(of) {
    const all = JSON.stringify(of)
    if (trial.dataset.all === all) return
    trial.dataset.all = all
    if (!of) return fill(trial)
    const { record } = of
    fill(trial, el('div', { class: 'card wide' }, el('h3', {}, `Version ${of.version} on trial`),
      el('p', {}, `${percent(of.share)} of the users get it since `, when(of.started), `, the others version ${of.parent}.`),
      record && el('p', {}, `Ratings: ${record.candidate_ratings} of it, ${record.parent_ratings} of version ${of.parent}. `,
        `Its mean less the other\u2019s: ${number(record.rating.mean)} [${number(record.rating.lower)}, ${number(record.rating.upper)}] over ${plural(record.rating.count, 'comparison')}.`),
      el('p', { class: 'row' },
        action('Serve it to everyone', { class: 'main' }, () => trouble, () => activate(of.version)),
        action(`Stay with version ${of.parent}`, {}, () => trouble, () => activate(of.parent)))))
  }

  async function activate(version) {
    if (!await confirmed(`Serve version ${version}?`, 'Everyone gets it from the next request on; answers that are being written end as they began. Training goes on from it.', 'Serve it')) return
    await call('v1/policy/activate', { version })
    await showFigures()
  }

  async function showFigures() {
    const [figures, versions] = await Promise.all([call('v1/policy/figures'), call('v1/policy/versions')])
    for (const name of ['rating', 'tokens', 'cut_off']) {
      plots[name].set(figures.data.filter(of => of[name]).map(of => ({ version: of.version, ...of[name] })))
    }
    plots.kl.set(distances(versions.data))
  }

  async function showWaiting() {
    const [reviews, verdicts, aside] = await Promise.all([call('v1/feedback/reviews'), call('v1/policy/verdicts'), call('v1/policy/aside')])
    const all = JSON.stringify([reviews, verdicts, aside])
    if (waits.dataset.all === all) return
    waits.dataset.all = all
    const serving = now.status?.policy_version ?? 0
    const proposed = verdicts.data.filter(verdict => verdict.ruling === 'proposed')
    const open = reviews.data.filter(user => user.verdict === null || user.verdict === 'hold')
    const decided = reviews.data.filter(user => user.verdict === 'trust' || user.verdict === 'reject')
    const decide = (user, verdict, label) => action(label, { class: 'small' }, () => trouble, async () => {
      await call('v1/feedback/reviews', { user, verdict })
      await showWaiting()
    })
    const parts = [
      proposed.length > 0 && el('div', { class: 'card wide' }, el('h3', {}, 'Versions that wait for a decision'), proposed.map(verdict =>
        el('p', { class: 'row spread' }, el('span', {}, `Version ${verdict.version}, from version ${verdict.parent}: ${verdict.record.reason ?? ''}`),
          el('span', { class: 'row' }, action('Serve it', { class: 'small' }, () => trouble, () => activate(verdict.version)),
            action(`Stay with version ${serving}`, { class: 'small' }, () => trouble, () => activate(serving)))))),
      open.length > 0 && el('div', { class: 'card wide' }, el('h3', {}, 'People whose ratings disagree with everyone\u2019s'),
        el('p', { class: 'soft' }, 'Their feedback is kept and waits until you decide.'),
        table('People to decide about', ['Who', 'Compared', 'Disagreed', 'Waiting', 'Decide'], open.map(user => [user.user, user.compared, user.disagreed, user.waiting,
          el('span', { class: 'row' }, decide(user.user, 'trust', 'Trust'), decide(user.user, 'reject', 'Reject'))]))),
      decided.length > 0 && el('details', { class: 'card wide' }, el('summary', {}, `${plural(decided.length, 'person', 'people')} decided about`),
        table('People decided about', ['Who', 'Decision', 'Compared', 'Disagreed', 'Decide again'], decided.map(user => [user.user, user.verdict === 'trust' ? 'trusted' : 'rejected', user.compared, user.disagreed,
          el('span', { class: 'row' }, decide(user.user, 'hold', 'Hold'), user.verdict === 'trust' ? decide(user.user, 'reject', 'Reject') : decide(user.user, 'trust', 'Trust'))]))),
      reviews.left_out.length > 0 && el('details', { class: 'card wide' }, el('summary', {}, `${plural(reviews.left_out.length, 'piece')} of feedback that can\u2019t be used`),
        table('Feedback that can\u2019t be used', ['Answer', 'Who', 'Why'], reviews.left_out.map(left => [left.generation_id, left.user ?? '–', left.reason]))),
      aside.data.length > 0 && el('div', { class: 'card wide' }, el('h3', {}, 'Versions that the record does not know'),
        el('p', { class: 'soft' }, 'They lie on the disk and were set aside at a start. Adopting one puts it on record; it is not served by that.'),
        table('Versions set aside', ['Name', 'Made', 'Samples', 'State', 'Actions'], aside.data.map(version => [version.name, version.created ? when(version.created) : '–', version.samples ?? '–', version.damage ?? 'whole',
          version.damage ? '' : action('Adopt', { class: 'small' }, () => trouble, async () => {
            await call('v1/policy/adopt', { name: version.name })
            await showWaiting()
          })]))),
    ].filter(Boolean)
    fill(waits, parts.length ? parts : el('p', { class: 'soft' }, 'Nothing waits for a decision.'))
  }

  function tell(kind, news) {
    const words = inWords(kind, news)
    if (!words) return
    nothing.hidden = true
    told.prepend(el('li', { class: kind }, when(Date.now()), ' ', words))
    while (told.childElementCount > MOST_TOLD) told.lastElementChild.remove()
  }

  /** What was decided before the page was opened. */
  async function showPast() {
    const { data } = await call('v1/policy/verdicts')
    for (const { version, ruling, created, decided, record } of data.slice(0, 20)) {
      nothing.hidden = true
      const who = version === null ? 'A candidate' : `Version ${version}`
      told.append(el('li', { class: ruling === 'refused' ? 'version_refused' : ruling }, when(decided ?? created), ' ', `${who} ${PAST[ruling]}: ${record.reason ?? 'no reason is on record'}.`))
    }
  }
  showPast().catch(error => problem(trouble, error))

  const show = () => Promise.all([showFigures(), showWaiting(), showDisk()]).catch(error => problem(trouble, error))
  let due = null
  listen((kind, news) => {
    if (kind === 'status') showStatus()
    tell(kind, news)
    // What was answered and rated changes the figures too, but needs no hurry.
    if (!due && !place.hidden) due = setTimeout(() => { due = null; show() }, changesVersions(kind) ? 200 : 5000)
  })
  showStatus()
  return { shown: show }
}

/** A figure with its details. It changes in place, and only where something changed: whoever reads or presses is left alone. */
class Card {
  constructor(title, ...rest) {
    this.main = el('p', { class: 'big' })
    this.list = el('dl')
    this.note = el('p', { class: 'soft' })
    this.element = el('div', { class: 'card' }, el('h3', {}, title), this.main, this.list, this.note, rest)
  }

  set(main, facts, note = '') {
    const all = JSON.stringify([main, facts, note])
    if (this.all === all) return
    this.all = all
    fill(this.main, main)
    this.list.hidden = facts.length === 0
    fill(this.list, facts.map(([name, value]) => [el('dt', {}, name), el('dd', {}, String(value))]))
    this.note.hidden = !note
    fill(this.note, note)
  }
}

const table = (label, heads, rows) => scrolls(label, el('table', {},
  el('thead', {}, el('tr', {}, heads.map(head => el('th', { scope: 'col' }, head)))),
  el('tbody', {}, rows.map(row => el('tr', {}, row.map(cell => el('td', {}, cell instanceof Node ? cell : String(cell))))))))

const count = ({ counts }) => counts.reduce((a, b) => a + b, 0)

const mean = durations => count(durations) ? durations.sum_seconds / count(durations) : null

function trainerWords(trainer) {
  if (trainer.unlearning) {
    const { replayed, batches, seconds_left: left } = trainer.unlearning
    return `Unlearning a forgotten user: ${replayed} of ${plural(batches, 'batch', 'batches')} replayed, some ${seconds(left)} left`
  }
  switch (trainer.state) {
    case 'training': return 'Training now'
    case 'idle': return 'Waiting for ratings'
    case 'loading': return 'Loading the model'
    case 'off': return `Off${trainer.reason ? `: ${trainer.reason}` : ''}`
    default: return `Not trained: ${trainer.reason ?? 'the model is of a kind that the trainer does not know'}`
  }
}

function outcomeWords(outcome) {
  switch (outcome.outcome) {
    case 'published': return `Version ${outcome.version} was made and serves.`
    case 'pending': return `Version ${outcome.version} was made and waits: ${outcome.ruling === 'trial' ? 'users try it' : 'someone has to decide'}.`
    case 'refused': return `The candidate was refused: ${outcome.reason}.`
    default: return `Nothing was made: ${outcome.reason ?? outcome.outcome}.`
  }
}

/** KL of each version: what its children measured of it, else what its own batch measured at its end. */
export function distances(versions) {
  const known = new Map()
  for (const { version, metrics } of versions) if (metrics.candidate_kl_per_response !== null && metrics.candidate_kl_per_response !== undefined) known.set(version, metrics.candidate_kl_per_response)
  for (const { parent, metrics } of versions) if (parent !== null && metrics.samples > 0 && metrics.kl_exact_per_response !== null) known.set(parent, metrics.kl_exact_per_response)
  return [...known].sort(([a], [b]) => a - b).map(([version, mean]) => ({ version, mean, lower: null, upper: null }))
}
