// The versions: what each is, how it was judged, which one serves. Going back, and serving another.

import { call } from './api.js'
import { action, bytes, confirmed, el, fill, number, percent, plural, problem, scrolls, seconds, when } from './dom.js'
import { changesVersions, listen, now } from './live.js'
import { openCompare } from './compare.js'

const RULINGS = { promoted: 'promoted', refused: 'refused', trial: 'on trial', proposed: 'waits for you', rolled_back: 'taken back', unlearned: 'removed' }

export function openVersions(place) {
  const trouble = el('div')
  const body = el('tbody')
  const detail = el('div')
  const back = action('Roll back', {}, () => trouble, async () => {
    const active = now.status?.policy_version
    if (!await confirmed('Roll back?', `The version that version ${active} was trained from serves from the next request on. Version ${active} stays on record.`, 'Roll back')) return
    fill(trouble)
    const { policy_version: version } = await call('v1/policy/rollback', {})
    fill(trouble, el('p', { class: 'notice', role: 'status' }, `Version ${version} serves.`))
    await show()
  })
  const compare = openCompare()
  fill(place, trouble,
    el('div', { class: 'row spread' }, el('h2', {}, 'Versions'), back),
    scrolls('Versions', el('table', { class: 'versions' },
      el('caption', { class: 'unseen' }, 'All versions, the newest first'),
      el('thead', {}, el('tr', {}, ['Version', 'Made', 'From', 'Verdict', 'Rating', 'Cut off', 'Taught by', 'Actions'].map(head => el('th', { scope: 'col' }, head)))), body)),
    detail, compare.element)

  let shownVersion = null

  async function show() {
    const [versions, verdicts, figures] = await Promise.all([call('v1/policy/versions'), call('v1/policy/verdicts'), call('v1/policy/figures')])
    const ruling = new Map(verdicts.data.reverse().filter(verdict => verdict.version !== null).map(verdict => [verdict.version, verdict.ruling]))
    const figure = new Map(figures.data.map(of => [of.version, of]))
    fill(body, [...versions.data].reverse().map(({ version, parent, active, created, metrics }) => el('tr', { class: active ? 'active' : null },
      el('th', { scope: 'row' }, String(version), active && el('span', { class: 'chip on' }, 'serves')),
      el('td', {}, when(created)),
      el('td', {}, parent === null ? '–' : String(parent)),
      el('td', {}, ruling.has(version) ? el('span', { class: `chip ${ruling.get(version)}` }, RULINGS[ruling.get(version)]) : version === 0 ? 'the initial model' : '–'),
      el('td', {}, figure.get(version)?.rating ? `${number(figure.get(version).rating.mean)} of ${figure.get(version).rating.count}` : '–'),
      el('td', {}, percent(figure.get(version)?.cut_off?.mean)),
      el('td', {}, parent === null ? '–' : plural(metrics.samples, 'sample')),
      el('td', {}, el('span', { class: 'row' },
        el('button', { type: 'button', class: 'small', 'aria-label': `Record of version ${version}`, onclick: () => open(version).catch(error => problem(trouble, error)) }, 'Record'),
        !active && action('Serve', { class: 'small', 'aria-label': `Serve version ${version}` }, () => trouble, async () => {
          if (!await confirmed(`Serve version ${version}?`, 'Everyone gets it from the next request on; answers that are being written end as they began. Training goes on from it.', 'Serve it')) return
          fill(trouble)
          await call('v1/policy/activate', { version })
          await show()
        }))))))
    back.hidden = versions.data.some(({ version, active }) => active && version === 0)
    if (shownVersion !== null) await open(shownVersion, false)
    await compare.versions()
  }

  async function open(version, jump = true) {
    const record = await call(`v1/policy/versions/${version}`)
    shownVersion = version
    const close = el('button', { type: 'button', class: 'plain', onclick: () => { shownVersion = null; fill(detail) } }, 'Close')
    const title = el('h3', { tabindex: '-1' }, `Version ${version}`)
    fill(detail, el('section', { class: 'card wide', 'aria-label': `Record of version ${version}` }, el('div', { class: 'row spread' }, title, close),
      lineage(record), verdict(record), batch(record), files(record)))
    if (jump) {
      title.focus()
      detail.scrollIntoView({ block: 'nearest' })
    }
  }

  const link = version => el('button', { type: 'button', class: 'small', onclick: () => open(version).catch(error => problem(trouble, error)) }, String(version))

  function lineage({ version, lineage: ancestors, children }) {
    return el('p', { class: 'row lineage' }, el('span', { class: 'soft' }, 'Lineage'),
      [...ancestors].reverse().map(ancestor => [link(ancestor), el('span', { 'aria-hidden': 'true' }, '→')]), el('b', {}, String(version)),
      children.length > 0 && [el('span', { 'aria-hidden': 'true' }, '→'), children.map(link)])
  }

  listen(kind => {
    if (changesVersions(kind) && !place.hidden) show().catch(error => problem(trouble, error))
  })
  return { shown: () => show().catch(error => problem(trouble, error)) }
}

/** How it was judged: the examination's lines, the anchors, the trial. */
function verdict({ verdict: judged }) {
  if (!judged) return el('p', { class: 'soft' }, 'No verdict: nothing has judged this version.')
  const { examination, reason, trial } = judged.record
  return el('div', {},
    el('p', {}, el('span', { class: `chip ${judged.ruling}` }, RULINGS[judged.ruling]), ' ', judged.decided && when(judged.decided), reason && ` ${reason}`),
    examination && [
      el('p', { class: 'soft' }, `Examined beside version ${judged.parent} on ${plural(examination.prompts, 'prompt')}, same prompts and same seeds${judged.record.seconds ? `, in ${seconds(judged.record.seconds)}` : ''}.`),
      scrolls('The examination', el('table', {},
        el('thead', {}, el('tr', {}, ['Measure', `Version ${judged.parent}`, 'This one', 'Difference, 95%', 'Limit', 'Result'].map(head => el('th', { scope: 'col' }, head)))),
        el('tbody', {}, examination.compared.map(line => el('tr', { class: line.crossed ? 'crossed' : null },
          el('th', { scope: 'row' }, line.name.replaceAll('_', ' ')), el('td', {}, number(line.parent, 3)), el('td', {}, number(line.candidate, 3)),
          el('td', {}, difference(line.difference)), el('td', {}, number(line.limit, 2)), el('td', {}, line.crossed ? 'crossed' : line.limit === undefined ? '' : 'within')))))),
      examination.anchors.length > 0 && el('p', {}, 'Anchors: ', examination.anchors.map(anchor => el('span', { class: `chip ${anchor.held ? 'on' : 'refused'}` }, `${anchor.name} ${anchor.held ? 'holds' : anchor.held_before ? 'no longer holds' : 'never held'}`))),
    ],
    trial && el('p', {}, `Trial: ${trial.reason}. ${plural(trial.candidate_ratings, 'rating')} of it, ${trial.parent_ratings} of version ${judged.parent}.`))
}

const difference = ({ count, mean, lower, upper }) => count > 1 ? `${number(mean, 3)} [${number(lower, 3)}, ${number(upper, 3)}]` : number(mean, 3)

function batch({ parent, metrics }) {
  if (parent === null || !metrics.samples) return null
  const rows = [
    ['samples', metrics.samples], ['mean reward', number(metrics.mean_reward)], ['mean length', `${number(metrics.mean_length, 0)} tokens`],
    ['moved by', `${number(metrics.kl_step, 3)} nats a response`], ['from the initial model', `${number(metrics.candidate_kl_per_response, 2)} nats a response`],
    ['optimizer steps', metrics.steps], ['took', seconds(metrics.seconds)],
  ]
  return el('details', {}, el('summary', {}, `The batch that taught it (of version ${parent}\u2019s answers)`),
    el('dl', {}, rows.map(([name, value]) => [el('dt', {}, name), el('dd', {}, String(value))])), metrics.stopped && el('p', {}, `It ended before the batch did: ${metrics.stopped}.`))
}

function files({ files: named, removed, damage }) {
  const sizes = Object.entries(named)
  return el('div', {}, removed && el('p', { class: 'soft' }, 'Its files were removed; its record stays.'), damage && el('p', { class: 'notice bad' }, `Damaged: ${damage}`),
    sizes.length > 0 && el('p', { class: 'soft' }, `On disk: ${sizes.map(([name, size]) => `${name} ${bytes(size)}`).join(', ')}.`))
}
