"""The page at `/`: what waits, which node does what; it loads nothing from elsewhere.

Everything that it shows is set as text, never as markup.
"""

from __future__ import annotations

POLICY = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sd-dispatcher</title>
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
#numbers { display: flex; flex-wrap: wrap; gap: 1rem; padding: 0; margin: 1rem 0; }
#numbers li { list-style: none; border: 1px solid #8886; border-radius: .4rem; padding: .4rem 1rem; min-width: 6rem; }
#numbers b { display: block; font-size: 1.6rem; line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 2rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #8884; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.away { opacity: .5; }
#said { min-height: 1.5em; }
</style>
</head>
<body>
<h1>sd-dispatcher</h1>
<p><a href="docs">API</a> · <a href="metrics">metrics</a> · <span id="said" role="status">reading</span></p>
<ul id="numbers"></ul>
<h2>Models in demand</h2>
<div class="wide"><table id="models"></table></div>
<h2>Nodes</h2>
<div class="wide"><table id="nodes"></table></div>
<script>
"use strict";

function element(tag, text, parent, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  parent.append(made);
  return made;
}

function table(id, columns, rows) {
  const parent = document.getElementById(id);
  parent.textContent = "";
  const head = element("tr", undefined, element("thead", undefined, parent));
  for (const [name, , kind] of columns) element("th", name, head, kind).scope = "col";
  const body = element("tbody", undefined, parent);
  for (const row of rows) {
    const line = element("tr", undefined, body, row.alive === false ? "away" : "");
    for (const [, value, kind] of columns) element("td", value(row), line, kind);
  }
}

const gigabytes = (bytes) => (bytes / 1e9).toFixed(1);
const seconds = (at) => `${Math.max(0, Math.round((Date.now() - new Date(at)) / 1000))} s ago`;
const disk = (node) => node.disk ? `${gigabytes(node.disk.used)} of ${gigabytes(node.disk.cap)}` : "";
const running = (node) => node.running.map((job) =>
  job.progress === undefined ? job.id : `${job.id} ${Math.round(100 * job.progress)} %`).join(", ");

const MODELS = [
  ["model", (m) => m.model], ["waiting", (m) => m.waiting, "number"], ["work, s", (m) => m.work_s, "number"],
  ["new a minute", (m) => m.arrivals_per_minute, "number"], ["in memory", (m) => m.warm, "number"],
  ["on disk", (m) => m.copies, "number"], ["being fetched", (m) => m.coming, "number"],
];
const NODES = [
  ["node", (n) => n.id], ["GPU", (n) => n.gpu || ""], ["heard", (n) => seconds(n.seen_at)],
  ["in memory", (n) => n.loaded.join(", ")], ["files", (n) => n.held, "number"], ["disk, GB", disk, "number"],
  ["running", running], ["fetching", (n) => n.fetching.join(", ")],
];

async function refresh() {
  const said = document.getElementById("said");
  try {
    const answer = await fetch("fleet");
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    const fleet = await answer.json();
    const numbers = document.getElementById("numbers");
    numbers.textContent = "";
    for (const [name, value] of [["waiting", fleet.waiting], ["running", fleet.leased], ["nodes", fleet.alive],
                                 ["away", fleet.away], ["asking", fleet.polls_held]]) {
      const item = element("li", undefined, numbers);
      element("b", value, item);
      element("span", name, item);
    }
    table("models", MODELS, fleet.models);
    table("nodes", NODES, fleet.nodes);
    said.textContent = `as of ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    said.textContent = String(error);
  }
}

refresh();
setInterval(refresh, 3000);
</script>
</body>
</html>
"""
