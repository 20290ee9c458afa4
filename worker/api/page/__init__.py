"""The page at `/`: what the worker does now, and how its last jobs went; it loads nothing from elsewhere.

Everything that it shows is set as text, never as markup.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from worker.api.page.basics import BASICS
from worker.api.page.state import STATE
from worker.api.page.timeline import TIMELINE
from worker.web.policy import policy

_SCRIPT = BASICS + TIMELINE + STATE
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif;
  --good: light-dark(#2e7d46, #5cc97f); --bad: light-dark(#b3261e, #ff8a7d); --odd: light-dark(#9a6700, #e8b339);
  --on: light-dark(#1f5fbf, #74aaff); --line: #8884; --ink: light-dark(#fff, #111); }
body { max-width: 75rem; margin: 1.5rem auto; padding: 0 1rem; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .2rem 1rem; }
h1 { margin: 0; font-size: 1.5rem; }
h2 { margin: 2rem 0 .5rem; font-size: 1.1rem; }
nav { margin-left: auto; }
#phase { border-radius: .4rem; padding: .1rem .6rem; border: 1px solid; font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); } .odd { color: var(--odd); } .on { color: var(--on); }
#away { border: 2px solid var(--bad); border-radius: .4rem; padding: .5rem 1rem; margin: 1rem 0; }
body.away main { opacity: .45; }
#running { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
#running div { flex: 1 1 18rem; }
#running p { margin: 0; overflow-wrap: anywhere; }
#running img { width: 12rem; max-width: 100%; border-radius: .4rem; }
progress { width: 100%; height: 1.1rem; accent-color: var(--on); }
ul.tiles { display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; margin: 0; }
.tiles li { list-style: none; border: 1px solid var(--line); border-radius: .4rem; padding: .3rem .8rem; }
.tiles b { display: block; font-size: 1.3rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td:first-child { max-width: min(22rem, 40vw); overflow: hidden; text-overflow: ellipsis; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }
dt { opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; }
.hint { opacity: .75; margin: .3rem 0; min-height: 1.5em; overflow-wrap: anywhere; }
svg { display: block; width: 100%; font: 12px system-ui, sans-serif; }
svg text { fill: currentColor; } svg line { stroke: var(--line); }
svg g.job { outline: none; cursor: default; }
svg g.job rect { stroke: currentColor; stroke-width: 1; rx: 2; fill: currentColor; }
svg g.job text { fill: var(--ink); font-weight: 700; pointer-events: none; }
svg g.bad rect { fill: url(#hatched); } svg g.odd rect { fill: url(#dotted); }
svg g.bad text, svg g.odd text { fill: currentColor; }
svg g.job:hover rect, svg g.job:focus rect { stroke-width: 3; }
svg:has(g.job:hover) g.job:not(:hover), svg:has(g.job:focus-visible) g.job:not(:focus) { opacity: .3; }
[hidden] { display: none !important; }
"""

_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>sd-worker</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>sd-worker</h1>
<span id="phase" role="status">reading</span> <span id="reasons"></span>
<nav aria-label="More"><a href="docs">API</a> · <a href="metrics">metrics</a> · <a href="v1/status">status</a></nav>
</header>
<p id="away" class="bad" role="alert" hidden></p>
<main>
<h2>Now</h2>
<section id="running" aria-label="The running job">
<div><p id="job"></p><progress id="bar" max="1" aria-labelledby="job" hidden></progress>
<p id="left" class="hint"></p></div>
<img id="preview" alt="A look at the picture in the making" hidden>
</section>
<p id="desk" class="hint"></p>
<div class="wide"><table id="held" hidden></table></div>
<h2>Timeline of the last jobs</h2>
<svg id="timeline" role="group" aria-label="One bar a hop, a lane each, on a common axis of time">
<defs>
<pattern id="hatched" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="2.5" height="6" fill="var(--bad)"/></pattern>
<pattern id="dotted" width="5" height="5" patternUnits="userSpaceOnUse">
<circle cx="2" cy="2" r="1.3" fill="var(--odd)"/></pattern>
</defs>
<g id="axis" aria-hidden="true"></g><g id="lanes" aria-hidden="true"></g><g id="bars"></g>
</svg>
<p class="hint" id="told"></p>
<div class="wide"><table id="last" hidden></table></div>
<h2>Models</h2>
<p><progress id="disk" max="1" aria-labelledby="room" hidden></progress><span id="room"></span></p>
<div class="wide"><table id="models" hidden></table></div>
<h2>Since the start</h2>
<ul id="counters" class="tiles"></ul>
<h2>Node</h2>
<dl id="node"></dl>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""

POLICY = policy(script=_SCRIPT, style=_STYLE, images="blob: data:")


def routes() -> APIRouter:
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers={"content-security-policy": POLICY, "cache-control": "no-cache"})

    return router
