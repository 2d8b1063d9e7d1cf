// The page's frame: views, header, alerts. Holds no view's content.

import { call } from './api.js'
import { byId, el, fill, plural } from './dom.js'
import { follow, inWords, listen, now } from './live.js'
import { openChat } from './chat.js'
import { openLearning } from './learning.js'
import { openVersions } from './versions.js'

const VIEWS = { chat: openChat, learning: openLearning, versions: openVersions }
const opened = {}

function route() {
  const [, wanted] = location.hash.match(/^#\/(\w+)/) ?? []
  const view = wanted in VIEWS ? wanted : 'chat'
  for (const name of Object.keys(VIEWS)) byId(name).hidden = name !== view
  for (const link of document.querySelectorAll('nav a')) {
    if (link.hash === `#/${view}`) link.setAttribute('aria-current', 'page')
    else link.removeAttribute('aria-current')
  }
  document.title = `${view.charAt(0).toUpperCase()}${view.slice(1)} · apad`
  opened[view] ??= VIEWS[view](byId(view))
  opened[view].shown?.()
}

const STATES = {
  off: 'training is off', unsupported: 'this model is not trained', loading: 'the trainer is loading',
  idle: 'waiting for ratings', training: 'training now',
}

function header() {
  const { status, connected, client } = now
  if (client) {
    // What the key doesn't allow is not offered.
    document.querySelectorAll('nav a:not([href="#/chat"])').forEach(link => { link.hidden = true })
    fill(byId('state'), el('span', { class: 'name', title: client.model }, client.model), el('span', { class: 'chip', id: 'serving' }, `version ${client.policy_version}`))
  }
  if (!status) return
  const { trainer } = status
  fill(byId('state'),
    el('span', { class: 'name', title: status.model }, status.model),
    el('span', { class: 'chip', id: 'serving' }, `version ${status.policy_version}`),
    el('span', { class: `chip ${trainer.state}`, title: trainer.reason ?? '' },
      trainer.state === 'idle' ? `${trainer.pending_ratings} of ${plural(trainer.batch, 'rating')}` : STATES[trainer.state]),
    el('span', { class: connected ? 'dot on' : 'dot', title: connected ? 'live' : 'not connected', role: 'img',
      'aria-label': connected ? 'live' : 'not connected' }))
}

function alerts() {
  const place = byId('alerts')
  const lines = (now.status?.alerts ?? []).map(alert => alert.message)
  if (!now.connected && now.status) lines.push('The connection to the service is lost; what is shown may be old.')
  // Only when it changed: an alert is read aloud each time.
  if (place.dataset.lines === lines.join('\n')) return
  place.dataset.lines = lines.join('\n')
  fill(place, lines.map(line => el('p', { class: 'notice bad' }, line)))
}

listen((kind, news) => {
  header()
  alerts()
  const words = inWords(kind, news)
  if (words) byId('said').textContent = words
})
document.querySelector('.skip').addEventListener('click', event => {
  event.preventDefault()
  byId('main').focus()
})
addEventListener('hashchange', route)
now.props = await call('props').catch(() => null)
route()
follow()
