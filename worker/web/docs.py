"""The page at `/docs`: the endpoints of the OpenAPI document, each to be tried out; it loads nothing from elsewhere.

Everything that it shows is set as text, never as markup; base64 and binary pictures of answers are shown as such.
"""

from __future__ import annotations

import html

from worker.web.policy import policy

_SCRIPT = r"""
"use strict";

const base = new URL(".", location.origin + location.pathname).href;
const LONG = 200, LISTED = 20;

function element(tag, text, parent, properties) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function resolved(schema, root, seen) {
  if (Array.isArray(schema)) return schema.map((item) => resolved(item, root, seen));
  if (schema === null || typeof schema !== "object") return schema;
  if (typeof schema.$ref === "string") {
    if (seen.includes(schema.$ref)) return schema;
    const target = schema.$ref.slice(2).split("/").reduce((node, key) => node[key], root);
    return resolved(target, root, [...seen, schema.$ref]);
  }
  return Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, resolved(value, root, seen)]));
}

// What is long is drawn when somebody opens it.
function fold(title, parent, draw) {
  const box = element("details", undefined, parent);
  const head = element("summary", title, box);
  box.addEventListener("toggle", () => draw(box), { once: true });
  return [box, head];
}

function media(text) {
  const data = /^data:(image\/[a-z+]+);base64,/.exec(text.slice(0, 50));
  if (data) return [data[1], text.slice(data[0].length)];
  const kinds = { iVBORw0KGgo: "image/png", "/9j/": "image/jpeg", UklGR: "image/webp" };
  const start = Object.keys(kinds).find((head) => text.startsWith(head));
  return start ? [kinds[start], text] : null;
}

// A copy to be read: long texts are cut, and those that are pictures are found.
function readable(value, pictures) {
  if (typeof value === "string" && value.length > LONG) {
    const found = media(value);
    if (found) pictures.push(`data:${found[0]};base64,${found[1]}`);
    return `${value.slice(0, 60)}… (${value.length} characters)`;
  }
  if (Array.isArray(value)) return value.map((item) => readable(item, pictures));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, readable(item, pictures)]));
}

function picture(url, parent) {
  const link = element("a", undefined, parent, { href: url, download: "image", title: "Save the picture" });
  element("img", undefined, link, { src: url, alt: "A picture of the answer" });
}

async function streamed(answer, shown) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) shown.append(part.value);
}

async function tell(answer, shown, began, gallery) {
  const type = answer.headers.get("content-type") || "";
  const took = ((performance.now() - began) / 1000).toFixed(1);
  shown.textContent = `${answer.status} ${answer.statusText}, after ${took} s\n\n`;
  if (type.startsWith("image/")) {
    const blob = await answer.blob();
    shown.append(`${type}, ${blob.size} bytes`);
    picture(URL.createObjectURL(blob), gallery);
  } else if (type.startsWith("text/event-stream")) await streamed(answer, shown);
  else if (type.includes("json")) {
    const pictures = [], text = await answer.text();
    shown.append(text ? JSON.stringify(readable(JSON.parse(text), pictures), null, 2) : "");
    for (const url of pictures.slice(0, LISTED)) picture(url, gallery);
  } else shown.append(await answer.text());
}

function request(method, path, inputs, body) {
  const query = new URLSearchParams(), headers = {}, key = document.getElementById("key").value;
  if (key) headers["X-API-Key"] = key;
  for (const { parameter, field } of inputs) {
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(field.value));
    else if (field.value === "") continue;
    else if (parameter.in === "query") query.set(parameter.name, field.value);
    else if (parameter.in === "header") headers[parameter.name] = field.value;
  }
  if (body) headers["content-type"] = "application/json";
  const url = base + path.slice(1) + (query.size ? `?${query}` : "");
  return [url, { method, headers, body: body ? body.value : undefined }];
}

async function send(button, shown, gallery, method, path, inputs, body) {
  shown.textContent = "waiting for the answer";
  gallery.textContent = "";
  button.disabled = true;
  try {
    const began = performance.now();
    await tell(await fetch(...request(method, path, inputs, body)), shown, began, gallery);
  } catch (error) {
    shown.append(`\n${error}`);
  } finally {
    button.disabled = false;
  }
}

function parameter(one, root, parent) {
  const schema = resolved(one.schema || {}, root, []), label = element("label", undefined, parent);
  element("code", one.name, label);
  element("span", ` in ${one.in}${one.required ? ", needed" : ""} `, label);
  const choices = schema.enum || (schema.type === "boolean" ? ["true", "false"] : null);
  const field = element(choices ? "select" : "input", undefined, label);
  for (const choice of choices ? ["", ...choices] : []) element("option", choice, field);
  const example = one.example ?? schema.default ?? (schema.examples || [])[0];
  if (!choices && example !== undefined && example !== null) field.placeholder = String(example);
  if (one.description) element("small", ` ${one.description}`, label);
  return { parameter: one, field };
}

function contents(content, parent) {
  const named = content.examples || (content.example === undefined ? {} : { example: { value: content.example } });
  const all = Object.values(named), written = (example) => JSON.stringify(example.value, null, 2);
  let choice;
  if (all.length > 1) {
    const label = element("label", "Example ", parent);
    choice = element("select", undefined, label, { className: "example" });
    for (const [name, example] of Object.entries(named)) element("option", example.summary || name, choice);
  }
  const value = all.length ? written(all[0]) : "{}";
  const body = element("textarea", undefined, parent, { value, spellcheck: false });
  body.setAttribute("aria-label", "The body of the request");
  if (choice) choice.onchange = () => { body.value = written(all[choice.selectedIndex]); };
  return body;
}

function drawn(box, path, method, operation, root) {
  if (operation.description) element("p", operation.description, box);
  const inputs = (operation.parameters || []).filter((one) => one.name.toLowerCase() !== "x-api-key")
    .map((one) => parameter(one, root, box));
  const content = operation.requestBody?.content?.["application/json"];
  const body = content ? contents(content, box) : null;
  const button = element("button", "Send", box), gallery = element("div", undefined, box, { className: "gallery" });
  const shown = element("pre", "", box, { className: "answer" });
  button.onclick = () => send(button, shown, gallery, method.toUpperCase(), path, inputs, body);
  const schema = (part) => (inner) => element("pre", JSON.stringify(resolved(part, root, []), null, 2), inner);
  if (content && content.schema) fold("The body's schema", box, schema(content.schema));
  for (const [status, answer] of Object.entries(operation.responses)) {
    const [described] = Object.values(answer.content || {});
    fold(`${status} ${answer.description}`, box, described && described.schema ? schema(described.schema) : () => {});
  }
}

function endpoint(path, method, operation, root, parent) {
  const [box, head] = fold("", parent, (inner) => drawn(inner, path, method, operation, root));
  box.id = `${method}${path}`;
  element("span", method.toUpperCase(), head, { className: "method" });
  element("code", path, head);
  element("span", operation.summary, head, { className: "about" });
}

async function show() {
  const key = document.getElementById("key").value;
  const answer = await fetch(`${base}openapi.json`, { headers: key ? { "X-API-Key": key } : {} });
  if (!answer.ok) throw new Error(`openapi.json: ${answer.status} ${answer.statusText}`);
  const root = await answer.json();
  document.getElementById("about").textContent = `${root.info.summary} Version ${root.info.version}.`;
  const parent = document.getElementById("endpoints");
  parent.textContent = "";
  const groups = new Map();
  for (const [path, item] of Object.entries(root.paths)) {
    for (const [method, operation] of Object.entries(item)) {
      const [tag = "other"] = operation.tags || [];
      groups.set(tag, [...(groups.get(tag) || []), [path, method, operation]]);
    }
  }
  for (const [tag, found] of groups) {
    element("h2", tag, parent);
    for (const [path, method, operation] of found) endpoint(path, method, operation, root, parent);
  }
}

const failed = (error) => { document.getElementById("endpoints").textContent = String(error); };
document.getElementById("key").addEventListener("change", () => show().catch(failed));
show().catch(failed);
"""

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2rem 0 .5rem; }
h2::first-letter { text-transform: uppercase; }
details { border: 1px solid #8886; border-radius: .4rem; margin: .4rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
code, pre, textarea, input { font-family: ui-monospace, monospace; font-size: .9rem; }
pre { overflow: auto; max-height: 30rem; background: #8882; padding: .6rem; border-radius: .4rem; }
pre:empty { display: none; }
textarea { width: 100%; min-height: 14rem; box-sizing: border-box; }
label { display: block; margin: .4rem 0; }
button { font: inherit; padding: .2rem 1.2rem; margin: .4rem 0; }
small { opacity: .75; }
.method { display: inline-block; min-width: 4rem; font-weight: 700; }
.about { opacity: .75; margin-left: 1rem; }
.gallery { display: flex; flex-wrap: wrap; gap: .6rem; }
.gallery img { max-width: 14rem; max-height: 14rem; border-radius: .4rem; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title} API</title>
<style>{style}</style>
</head>
<body>
<h1>{title} API</h1>
<p id="about"></p>
<label>API key, where one is set: <input id="key" type="password" autocomplete="off" size="32">
<small>sent as X-API-Key, kept by this page alone until it is closed</small></label>
<main id="endpoints">Loading openapi.json</main>
<script>{script}</script>
</body>
</html>
"""

POLICY = policy(script=_SCRIPT, style=_STYLE, images="blob: data:")


def page(title: str) -> str:
    """The page of the service that is called so."""
    return _PAGE.replace("{title}", html.escape(title)).replace("{style}", _STYLE).replace("{script}", _SCRIPT)
