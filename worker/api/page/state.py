"""Asks for the status once a second while the page is looked at, and shows it."""

from __future__ import annotations

STATE = r"""
function now(status) {
  const job = status.jobs.find((one) => one.hop === "generate");
  say(at("job"), job ? `▸ ${job.id}` : status.jobs.length ? "Nothing generates just now." : "Idle: no job is held.");
  const progress = job ? job.progress : null;
  at("bar").hidden = !job;
  if (progress === null) at("bar").removeAttribute("value");
  else at("bar").value = progress;
  const left = job && job.eta_s !== null ? `, ${duration(job.eta_s)} left` : "";
  const done = progress === null ? "" : `, ${Math.round(100 * progress)} %`;
  say(at("left"), job ? `generating for ${duration(job.hop_s)}${done}${left}` : "");
  look(job && job.preview ? job.id : null);
  const waiting = unique(status.jobs.filter((one) => one !== job), (one) => one.id);
  table("held", HELD, waiting);
  const desk = status.desk;
  const full = desk && desk.full.length ? ` (full: ${desk.full.map(words).join(", ")})` : "";
  say(at("desk"), desk ? `Waiting HTTP jobs: ${desk.waiting} of at most ${desk.max_pending}${full}` : "");
}

let looking = false;
async function look(id) {
  const shown = at("preview");
  if (!id) {
    shown.hidden = true;
    return;
  }
  if (looking) return;
  looking = true;
  try {
    const url = `${base}v1/jobs/${encodeURIComponent(id)}/preview`;
    const answer = await fetch(url, { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) return;
    URL.revokeObjectURL(shown.src);
    shown.src = URL.createObjectURL(await answer.blob());
    shown.hidden = false;
  } catch { shown.hidden = true; } finally { looking = false; }
}

const WHERE = { waiting: "waiting for the engine", settle: "webhook, acknowledgement" };
const HELD = [
  ["job held", (job) => job.id],
  ["where", (job) => job.parked ? "parked: waits for its models" : WHERE[job.hop] || job.hop],
  ["for", (job) => duration(job.hop_s), "number"], ["held for", (job) => duration(job.held_s), "number"],
];
const LAST = [
  ["job", (job) => job.id],
  ["end", (job) => `${sign(job.outcome)} ${ending(job)}`, "outcome"],
  ["ago", (job) => duration(job.ended_s), "number"],
  ...Object.entries(LANES).map(([hop, name]) =>
    [`${name}, s`, (job) => within(job, hop).length ? spent(job, hop).toFixed(2) : "", "number"]),
];
const MODELS = [
  ["model", (model) => model.name], ["kind", (model) => model.kind],
  ["where", (model) => model.where], ["size", (model) => size(model.size), "number"],
];

const fetched = (one) => `↓ ${Math.floor(100 * one.done / Math.max(1, one.size))} % of ${size(one.size)}`;

function models(status) {
  const coming = status.cache ? status.cache.transfers : [];
  const loaded = status.node.models.filter((one) => one.tier === "vram");
  const rows = [
    ...coming.map((one) => ({ ...one, where: fetched(one), size: one.done })),
    ...loaded.map((one) => ({ ...one, where: "● in the server's memory" })),
    ...status.node.models.filter((one) => one.tier !== "vram").map((one) => ({ ...one, where: "on disk" })),
  ];
  table("models", MODELS, unique(rows, (one) => `${one.kind}/${one.name}`));
  const disk = status.node.disk || status.cache;
  at("disk").hidden = !(disk && disk.cap);
  if (disk && disk.cap) {
    at("disk").value = disk.used / disk.cap;
    const free = disk.free === null ? "" : `, ${size(disk.free)} free`;
    say(at("room"), `${size(disk.used)} of the cap of ${size(disk.cap)} used${free}`);
  } else say(at("room"), "The worker has no folder of models here.");
}

const COUNTED = [
  ["deliveries_received", "received"], ["deliveries_returned", "given back"],
  ["generation_busy_seconds", "generating", duration], ["uploads_bytes", "uploaded", size],
  ["models_downloaded_bytes", "models fetched", size], ["engine_faults", "faults of the server"],
  ["engine_restarts", "restarts of the server"], ["bugs", "bugs"],
];
const RARE = ["models_downloaded_bytes", "engine_faults", "engine_restarts", "bugs"];

function counters(status) {
  const tiles = [];
  for (const [outcome, codes] of Object.entries(status.outcomes)) {
    for (const [code, count] of Object.entries(codes)) {
      const name = `${sign(outcome)} ${ending({ outcome, code })}`;
      tiles.push({ key: `${outcome} ${code}`, name, count, tone: tone(outcome) });
    }
  }
  for (const [key, name, as = String] of COUNTED) {
    const count = status.counters[key] || 0;
    if (count || !RARE.includes(key)) tiles.push({ key, name, count: as(count), tone: "" });
  }
  sync(at("counters"), tiles, () => element("li", {}, element("b"), element("span")), (made, tile) => {
    say(set(made.firstChild, { class: tile.tone }), String(tile.count));
    say(made.lastChild, tile.name);
  });
}

function node(status) {
  const { node, engine, pace } = status, kind = (part) => part ? part.kind : "";
  const reach = words(engine.reach || "").replace("engine ", "");
  const facts = {
    node: node.id, machine: node.machine === node.id ? "" : node.machine, version: node.version,
    GPU: node.gpu || "none found",
    "graphics memory": node.vram_gb ? `${node.vram_gb} GB` : "",
    "image server": [engine.name, engine.version, reach].filter(Boolean).join(", "),
    "loaded model": engine.model || "", queue: kind(status.queue), storage: kind(status.storage),
    "usual generation": pace && pace.generate_s ? duration(pace.generate_s) : "",
    paused: status.pauses.map(words).join(", "),
  };
  const items = Object.entries(facts).filter(([, value]) => value).flatMap(([name, value]) =>
    [{ key: `${name}?`, tag: "dt", value: name }, { key: name, tag: "dd", value: String(value) }]);
  sync(at("node"), items, (item) => element(item.tag), (made, item) => say(made, item.value));
}

function show(status) {
  const jobs = journeys(status);
  say(at("phase"), `${status.ready ? "✓" : status.phase === "paused" ? "⏸" : "…"} ${words(status.phase)}`);
  at("phase").className = status.ready ? "good" : "odd";
  say(at("reasons"), status.reasons.map(words).join(", "));
  document.title = `${words(status.phase)} · sd-worker ${status.node.id}`;
  now(status);
  timeline(jobs);
  table("last", LAST, jobs.filter((job) => job.outcome !== "running").reverse());
  models(status);
  counters(status);
  node(status);
}

let heard = null, timer = null;
async function refresh() {
  clearTimeout(timer);
  const away = at("away");
  try {
    const answer = await fetch(`${base}v1/status`, { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    const status = await answer.json();
    heard = new Date();
    away.hidden = true;
    document.body.classList.remove("away");
    show(status);
  } catch (error) {
    const since = heard ? ` since ${heard.toLocaleTimeString()}: what stands here is of then` : "";
    say(away, `This worker does not answer${since} (${error.message})`);
    away.hidden = false;
    document.body.classList.add("away");
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(refresh, 1000);
}

document.addEventListener("visibilitychange", () => document.hidden ? clearTimeout(timer) : refresh());
refresh();
"""
