"""The picture of the last jobs: a lane for each hop, a bar for each time that a job was in it."""

from __future__ import annotations

TIMELINE = r"""
// Every job as the timeline takes it: its hops in seconds before now, the one it is in included.
function journeys(status) {
  const held = status.jobs.map((job) => ({
    id: job.id, outcome: "running", code: null, ended_s: 0, hop: job.hop,
    spans: [...job.spans, { hop: job.hop, began_s: job.hop_s, ended_s: 0 }],
  }));
  return unique([...status.recent, ...held].slice(-SHOWN), (job) => job.id);
}

const began = (job) => Math.max(job.ended_s, ...job.spans.map((span) => span.began_s));
const within = (job, hop) => job.spans.filter((span) => span.hop === hop);
const spent = (job, hop) => within(job, hop).reduce((sum, span) => sum + span.began_s - span.ended_s, 0);

const ending = (job) => words(job.outcome) + (job.code ? `: ${words(job.code)}` : "");

function story(job) {
  const hops = Object.keys(LANES).filter((hop) => within(job, hop).length);
  const parts = hops.map((hop) => `${LANES[hop]} ${duration(spent(job, hop))}`).join(", ");
  return `${job.id}: ${job.outcome === "running" ? words(job.hop) : ending(job)}; ${parts || "nothing yet"}`;
}

// From the newest job back to the first long silence.
function extent(jobs) {
  const to = Math.min(...jobs.map((job) => job.ended_s));
  let from = to + 1;
  for (const job of [...jobs].sort((a, b) => a.ended_s - b.ended_s)) {
    if (job.ended_s - from > Math.max(30, from - to)) break;
    from = Math.max(from, began(job));
  }
  return [from, to];
}

// Bars of a lane that overlap in time lie below each other.
function rows(jobs, hop) {
  const ends = [], found = new Map();
  const spans = jobs.flatMap((job) => within(job, hop)).sort((a, b) => b.began_s - a.began_s);
  for (const span of spans) {
    let row = ends.findIndex((end) => end >= span.began_s);
    if (row < 0) row = ends.length;
    ends[row] = span.ended_s;
    found.set(span, row);
  }
  return [found, Math.max(1, ends.length)];
}

function timeline(jobs) {
  const picture = at("timeline"), width = Math.max(280, picture.clientWidth);
  const [from, to] = jobs.length ? extent(jobs) : [10, 0];
  const x = (s) => GUTTER + (width - GUTTER - 8) * (from - s) / (from - to);
  const lanes = [], place = new Map();
  let y = TOP;
  for (const [hop, name] of Object.entries(LANES)) {
    const [found, count] = rows(jobs, hop);
    for (const [span, row] of found) place.set(span, y + row * ROW);
    lanes.push({ key: hop, name, y });
    y += count * ROW + 6;
  }
  set(picture, { height: y + 20, viewBox: `0 0 ${width} ${y + 20}` });
  const line = () => element("g", {}, element("text", { x: 0 }), element("line", { x1: 0 }));
  sync(at("lanes"), lanes, line, (g, lane) => {
    say(set(g.firstChild, { y: lane.y + 11 }), lane.name);
    set(g.lastChild, { x2: width, y1: lane.y - 3, y2: lane.y - 3 });
  });
  axis(from, to, x, y, width);
  bars(jobs.filter((job) => began(job) <= from + .001), x, place);
}

function axis(from, to, x, y, width) {
  const most = Math.max(2, (width - GUTTER) / 90);
  const step = STEPS.find((s) => (from - to) / s <= most) || 86400 * Math.ceil((from - to) / most / 86400);
  const ticks = [];
  for (let s = Math.ceil(to / step) * step; s <= from; s += step) ticks.push({ key: s.toFixed(1), s });
  const line = () => element("g", {}, element("line"), element("text", { "text-anchor": "middle" }));
  sync(at("axis"), ticks, line, (g, tick) => {
    const where = x(tick.s), label = tick.s === 0 ? "now" : `−${duration(tick.s)}`.replace(".0 s", " s");
    set(g.firstChild, { x1: where, x2: where, y1: 0, y2: y });
    say(set(g.lastChild, { x: Math.min(where, width - 16), y: y + 14 }), label);
  });
}

function bars(jobs, x, place) {
  const group = () => {
    const g = element("g", { tabindex: 0, role: "img" }, element("title"), element("g"));
    for (const event of ["focus", "pointerenter"]) g.addEventListener(event, () => { told = g; tell(); });
    return g;
  };
  const bar = () => element("g", {}, element("rect", { height: BAR }), element("text", { "text-anchor": "middle" }));
  sync(at("bars"), jobs, group, (g, job) => {
    say(set(g, { class: `job ${tone(job.outcome)}`, "aria-label": story(job) }).firstChild, story(job));
    const spans = job.spans.filter((span) => place.has(span));
    const items = spans.map((span, index) => ({ ...span, key: index, y: place.get(span) }));
    sync(g.lastChild, items, bar, (one, span) => {
      const left = x(span.began_s), wide = Math.max(2, x(span.ended_s) - left);
      set(one.firstChild, { x: left, y: span.y, width: wide, class: `hop-${span.hop}` });
      say(set(one.lastChild, { x: left + wide / 2, y: span.y + 11 }), wide > 13 ? sign(job.outcome) : "");
    });
  });
  tell();
}

let told = null;
function tell() {
  const shown = told && told.isConnected ? told.firstChild.textContent : "";
  say(at("told"), shown || LEGEND);
}
"""
