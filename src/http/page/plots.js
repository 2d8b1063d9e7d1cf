// Plots by version: a line through means, and a band from lower to upper bounds. Draws with uPlot; computes nothing.

import { el, fill, number, scrolls } from './dom.js'

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()
const plots = new Set()

/** Dark or light: what is drawn doesn't follow styles by itself. */
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => plots.forEach(plot => plot.draw()))

/** A plot with a title, a line that explains it, and the same numbers as a table. */
export class Plot {
  constructor(title, about, show = number) {
    this.show = show
    this.canvas = el('div', { class: 'canvas', 'aria-hidden': 'true' })
    this.newest = el('p', { class: 'newest' })
    this.table = el('table', {}, el('thead', {}, el('tr', {}, ['Version', 'Mean', '95% interval', 'Of'].map(head => el('th', { scope: 'col' }, head)))), el('tbody'))
    this.element = el('figure', { class: 'plot' }, el('figcaption', {}, el('h3', {}, title), el('p', {}, about)), this.newest, this.canvas,
      el('details', {}, el('summary', {}, 'As a table'), scrolls(title, this.table)))
    this.points = []
    plots.add(this)
    new ResizeObserver(() => this.draw()).observe(this.canvas)
  }

  /** `points` of `{version, mean, lower, upper, count}`, in order of their versions. */
  set(points) {
    const all = JSON.stringify(points)
    if (this.all === all) return
    this.all = all
    this.points = points
    const last = points.at(-1)
    fill(this.newest, last ? [el('b', {}, this.show(last.mean)), ` in version ${last.version}`] : 'Nothing yet.')
    const bounds = ({ lower, upper }) => lower === null || lower === undefined ? '–' : `${this.show(lower)} to ${this.show(upper)}`
    fill(this.table.tBodies[0], points.map(point => el('tr', {}, el('th', { scope: 'row' }, String(point.version)), el('td', {}, this.show(point.mean)),
      el('td', {}, bounds(point)), el('td', {}, point.count === undefined ? '–' : String(point.count)))))
    this.element.querySelector('details').hidden = points.length === 0
    this.draw()
  }

  draw() {
    const width = this.canvas.clientWidth
    if (!width) return
    this.drawn?.destroy()
    this.drawn = null
    if (this.points.length === 0) return
    const [ink, faint, line] = ['--soft', '--line', '--accent'].map(colour)
    const or = (value, other) => value === null || value === undefined ? other : value
    const data = [
      this.points.map(point => point.version),
      this.points.map(point => or(point.lower, point.mean)),
      this.points.map(point => or(point.upper, point.mean)),
      this.points.map(point => point.mean),
    ]
    const axis = { stroke: ink, font: '11px system-ui, sans-serif', grid: { stroke: faint, width: 1 }, ticks: { stroke: faint, width: 1, size: 4 } }
    const edge = { stroke: `${line}66`, width: 1, points: { show: false } }
    this.drawn = new uPlot({
      width, height: 170, legend: { show: false }, cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { time: false, range: () => [data[0][0] - 0.5, data[0].at(-1) + 0.5] } },
      axes: [
        { ...axis, size: 28, space: 34, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], values: (_, splits) => splits.map(split => Number.isInteger(split) && split >= 0 ? String(split) : '') },
        { ...axis, size: 48, space: 34, values: (_, splits) => splits.map(split => this.show(split)) },
      ],
      series: [{}, edge, edge, { stroke: line, width: 2, points: { show: true, size: 6, fill: line } }],
      bands: [{ series: [2, 1], fill: `${line}26` }],
    }, data, this.canvas)
  }
}
