"""What every part of the page is drawn with: texts, elements, lists whose nodes stay, and tables."""

from __future__ import annotations

BASICS = r"""
"use strict";

const LANES = { models: "models", generate: "generate", images: "images", upload: "upload", settle: "webhook" };
const SIGNS = { running: "▸", succeeded: "✓", failed: "✗", cancelled: "⊘", returned: "↩", released: "↩" };
const TONES = { running: "on", succeeded: "good", failed: "bad" };
const SHOWN = 20, GUTTER = 72, ROW = 18, BAR = 14, TOP = 4;
const STEPS = [.1, .2, .5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400];

const LEGEND = "▸ running  ✓ succeeded  ✗ failed  ↩ given back  ⊘ cancelled. Point at a bar or press Tab for more.";
const base = location.origin + location.pathname;
const at = (id) => document.getElementById(id);
const tone = (outcome) => TONES[outcome] || "odd";
const sign = (outcome) => SIGNS[outcome] || "!";
const words = (text) => String(text).replaceAll("_", " ");

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function duration(s) {
  if (s < 60) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
  const whole = Math.round(s), [h, m] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return h ? `${h} h ${m} min` : `${m} min ${whole % 60} s`;
}

function size(bytes) {
  if (bytes === null || bytes === undefined) return "";
  const [unit, name] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([least]) => bytes >= least) || [1, "bytes"];
  return `${(bytes / unit).toFixed(unit > 1 ? 1 : 0)} ${name}`;
}

function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function element(tag, attributes = {}, ...children) {
  const drawn = ["g", "rect", "text", "line", "title"].includes(tag);
  const made = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  made.append(...children);
  return set(made, attributes);
}

// Nodes stay as long as their item does, so that what has the focus keeps it.
function sync(parent, items, make, update) {
  const before = parent.kept || new Map(), keys = new Set(items.map((item) => item.key));
  for (const [key, node] of before) if (!keys.has(key)) node.remove();
  parent.kept = new Map();
  let last = null;
  for (const item of items) {
    const node = before.get(item.key) || make(item);
    const next = last ? last.nextSibling : parent.firstChild;
    if (node !== next) parent.insertBefore(node, next);
    update(node, item);
    parent.kept.set(item.key, node);
    last = node;
  }
}

function unique(items, name) {
  const seen = new Map();
  return items.map((item) => {
    const count = (seen.get(name(item)) || 0) + 1;
    seen.set(name(item), count);
    return { ...item, key: `${name(item)} ${count}` };
  });
}

function table(id, columns, items) {
  const parent = at(id);
  parent.hidden = !items.length;
  if (!parent.tHead) {
    const head = parent.createTHead().insertRow();
    for (const [name, , kind = ""] of columns) head.append(element("th", { scope: "col", class: kind }, name));
    parent.append(element("tbody"));
  }
  const row = () => {
    const made = element("tr");
    for (const [, , kind = ""] of columns) made.append(element("td", { class: kind }));
    return made;
  };
  sync(parent.tBodies[0], items, row, (node, item) => columns.forEach(([, value, kind], index) => {
    const cell = node.cells[index], text = String(value(item));
    say(cell, text);
    if (index === 0) cell.title = text;
    if (kind === "outcome") cell.className = tone(item.outcome);
  }));
}
"""
