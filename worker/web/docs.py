"""The page at `/docs`: the endpoints of the OpenAPI document, each to be tried out; it loads nothing from elsewhere.

Everything that it shows is set as text, never as markup.
"""

from __future__ import annotations

import html

POLICY = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} API</title>
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2rem 0 .5rem; text-transform: capitalize; }
details { border: 1px solid #8886; border-radius: .4rem; margin: .4rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; }
code, pre, textarea, input { font-family: ui-monospace, monospace; font-size: .9rem; }
pre { overflow: auto; max-height: 30rem; background: #8882; padding: .6rem; border-radius: .4rem; }
textarea { width: 100%; min-height: 8rem; box-sizing: border-box; }
label { display: block; margin: .4rem 0; }
.method { display: inline-block; min-width: 4rem; font-weight: 700; }
.about { opacity: .75; margin-left: 1rem; }
</style>
</head>
<body>
<h1>{title} API</h1>
<p id="about"></p>
<main id="endpoints">Loading openapi.json</main>
<script>
"use strict";

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

function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

async function send(method, path, inputs, body, shown) {
  const query = new URLSearchParams();
  const headers = {};
  for (const { parameter, field } of inputs) {
    if (field.value === "") continue;
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(field.value));
    if (parameter.in === "query") query.set(parameter.name, field.value);
    if (parameter.in === "header") headers[parameter.name] = field.value;
  }
  if (body) headers["content-type"] = "application/json";
  shown.textContent = "waiting for the answer";
  try {
    const url = query.size ? `${path}?${query}` : path;
    const answer = await fetch(url, { method, headers, body: body ? body.value : undefined });
    shown.textContent = `${answer.status} ${answer.statusText}\\n\\n${pretty(await answer.text())}`;
  } catch (error) {
    shown.textContent = String(error);
  }
}

function endpoint(path, method, operation, root, parent) {
  const box = element("details", undefined, parent);
  const head = element("summary", undefined, box);
  element("span", method.toUpperCase(), head, { className: "method" });
  element("code", path, head);
  element("span", operation.summary, head, { className: "about" });
  if (operation.description) element("p", operation.description, box);
  const inputs = (operation.parameters || []).map((parameter) => {
    const label = element("label", `${parameter.name} (${parameter.in}) `, box);
    return { parameter, field: element("input", undefined, label) };
  });
  const content = operation.requestBody?.content?.["application/json"];
  let body;
  if (content) {
    body = element("textarea", JSON.stringify(content.example ?? {}, null, 2), box);
    element("pre", JSON.stringify(resolved(content.schema, root, []), null, 2), box);
  }
  const button = element("button", "Send", box);
  const shown = element("pre", "", box);
  button.onclick = () => send(method.toUpperCase(), path, inputs, body, shown);
  for (const [status, answer] of Object.entries(operation.responses)) {
    const about = element("details", undefined, box);
    element("summary", `${status} ${answer.description}`, about);
    const [described] = Object.values(answer.content || {});
    if (described) element("pre", JSON.stringify(resolved(described.schema, root, []), null, 2), about);
  }
}

async function show() {
  const root = await (await fetch("openapi.json")).json();
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

show().catch((error) => { document.getElementById("endpoints").textContent = String(error); });
</script>
</body>
</html>
"""


def page(title: str) -> str:
    """The page of the service that is called so."""
    return _PAGE.replace("{title}", html.escape(title))
