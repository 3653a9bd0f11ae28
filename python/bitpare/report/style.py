"""The style sheet and the script of a report."""

CSS = """
:root { color-scheme: light dark;
  --bg: #f6f7f8; --card: #ffffff; --ink: #1b2027; --soft: #5b6672; --rule: #e4e7ea;
  --weight: #2f6db5; --activation: #c9722a; --integer: #2b8a63; --quantized: #2f6db5;
  --float: #8a95a1; --bad: #c0392f; --level: #1b202766; --clipped: #c0392f1c; --heat: #c0392f;
  --heatink: #ffffff; --zipped: #1b202755; --whisker: #1b2027aa;
  --line0: #2f6db5; --line1: #c9722a; --line2: #2b8a63; --line3: #8d56b0; --line4: #b89a1c;
  --line5: #c64f7d; --line6: #2796a8; --line7: #7a6148; }
@media (prefers-color-scheme: dark) { :root {
  --bg: #14171b; --card: #1d2127; --ink: #e6e9ec; --soft: #98a3af; --rule: #30363d;
  --weight: #6ba6e8; --activation: #eb9c5a; --integer: #57c296; --quantized: #6ba6e8;
  --float: #808b97; --bad: #f0776c; --level: #e6e9ec70; --clipped: #f0776c26; --heat: #e0645a;
  --heatink: #14171b; --zipped: #e6e9ec66; --whisker: #e6e9ecaa;
  --line0: #6ba6e8; --line1: #eb9c5a; --line2: #57c296; --line3: #c08fe0; --line4: #dcc04f;
  --line5: #ee86ac; --line6: #5cc8d8; --line7: #b99b7d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; font-weight: 650; }
h2 { font-size: 19px; margin: 44px 0 4px; font-weight: 650; }
h3 { font-size: 14px; margin: 0 0 8px; font-weight: 600; }
p { margin: 4px 0 14px; color: var(--soft); max-width: 84ch; }
h1 + p { max-width: none; }
p strong, li strong { color: var(--ink); font-weight: 600; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 14px 0 20px; font-size: 14px; }
nav a { color: var(--weight); text-decoration: none; } nav a:hover { text-decoration: underline; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 16px; margin: 0 0 14px; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 0 0 14px; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 12px 14px; min-width: 0; }
.tile b { display: block; font-size: 23px; line-height: 1.25; font-weight: 650; }
.tile span { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.findings { margin: 0; padding-left: 20px; color: var(--soft); } .findings li { margin: 3px 0; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 14px; }
.two .card { margin: 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(258px, 1fr)); gap: 12px; }
.small { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 10px 12px 6px; min-width: 0; }
.small header { display: flex; align-items: center; gap: 8px; margin-bottom: 2px; }
.small .name { font-weight: 600; font-size: 13px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; flex: 1; }
.small .db { font-size: 13px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.small .facts { color: var(--soft); font-size: 12px; line-height: 1.4; min-height: 1.4em;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.small svg { margin-top: 6px; }
.tag { font-size: 11px; line-height: 1.3; padding: 0 6px; border-radius: 9px;
  border: 1px solid currentColor; white-space: nowrap; }
.tag.weight { color: var(--weight); } .tag.activation { color: var(--activation); }
.bad { color: var(--bad); fill: var(--bad); }
.missing { color: var(--soft); border: 1px dashed var(--rule); border-radius: 10px;
  padding: 12px 16px; margin: 0 0 14px; max-width: none; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, monospace; color: var(--ink); }
details { margin: 12px 0; } details > summary { cursor: pointer; color: var(--weight);
  font-size: 14px; margin-bottom: 10px; }
.scroll { overflow: auto; } .scroll.tall { max-height: 720px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums;
  width: 100%; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; position: sticky; top: 0; background: var(--card); }
table.sortable th { cursor: pointer; }
th.up::after { content: " ▴"; } th.down::after { content: " ▾"; }
th:first-child, td:first-child, td.left, th.left { text-align: left; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--soft);
  margin: 0 0 10px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  margin-right: 6px; vertical-align: -1px; background: var(--float); }
.legend i.weight { background: var(--weight); }
.legend i.activation { background: var(--activation); }
.legend i.integer { background: var(--integer); }
.legend i.quantized { background: var(--quantized); }
.legend i.levels { background: none; border-left: 2px solid var(--level); width: 2px;
  border-radius: 0; }
.legend i.clipped { background: var(--clipped); border: 1px solid var(--bad); }
.legend i.pale { opacity: 0.4; } .legend i.zipped { background: var(--zipped); }
svg.plot { display: block; width: 100%; height: auto; }
svg.rows { max-width: 560px; }
svg.lines { max-width: 100%; } svg.graph { max-width: 820px; margin: 0 auto; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  fill: var(--ink); } svg .faint { fill: var(--soft); } svg .strong { font-weight: 600; }
svg .bad { fill: var(--bad); } svg .on { fill: var(--heatink); }
.weight { fill: var(--weight); } .activation { fill: var(--activation); }
.integer { fill: var(--integer); } .quantized { fill: var(--quantized); }
.float { fill: var(--float); } .end { fill: var(--float); }
.pale { opacity: 0.35; } .zipped { fill: var(--zipped); }
.axis { stroke: var(--soft); stroke-width: 1; } .rule { stroke: var(--rule); stroke-width: 1; }
.level { stroke: var(--level); stroke-width: 0.8; fill: none; }
.clipped { fill: var(--clipped); } .clip { stroke: var(--bad); stroke-width: 1.2; }
.leader { stroke: var(--soft); stroke-width: 0.8; }
.whisker { stroke: var(--whisker); stroke-width: 1.5; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.line.other { stroke: var(--float); stroke-width: 1; opacity: 0.35; }
.heat { fill: var(--heat); }
rect.step { fill-opacity: 0.11; stroke-opacity: 0.35; stroke-width: 1; }
rect.step.integer { stroke: var(--integer); } rect.step.quantized { stroke: var(--quantized); }
rect.step.float, rect.step.end { stroke: var(--float); }
rect.chip { fill-opacity: 0.22; } .edge { fill: none; stroke: var(--soft); stroke-width: 1.2; }
.edge.skip { stroke: var(--float); }
#tip { position: fixed; pointer-events: none; background: var(--ink); color: var(--bg);
  padding: 4px 9px; border-radius: 6px; font-size: 12px; display: none; z-index: 9;
  font-variant-numeric: tabular-nums; max-width: 420px; }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
@media print { .scroll.tall { max-height: none; } nav { display: none; } }
@media (max-width: 800px) { svg.columns, svg.heatmap, svg.graph { min-width: 720px; } }
@media (max-width: 520px) { .two { grid-template-columns: 1fr; } main { padding: 20px 12px; } }
"""

JS = """
(() => {
  const tip = document.getElementById('tip');
  const show = (event, text) => {
    tip.textContent = text;
    tip.style.display = 'block';
    const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    tip.style.left = x + 'px';
    tip.style.top = Math.max(event.clientY - 32, 4) + 'px';
  };
  const hide = () => { tip.style.display = 'none'; };
  document.querySelectorAll('svg.histogram').forEach(svg => {
    const d = svg.dataset, counts = d.counts.split(',').map(Number);
    svg.addEventListener('mousemove', event => {
      const box = svg.getBoundingClientRect(), unit = box.width / svg.viewBox.baseVal.width;
      const at = ((event.clientX - box.left) / unit - d.from) / (d.to - d.from);
      const i = Math.floor(at * counts.length);
      if (i < 0 || i >= counts.length) return hide();
      const a = +d.low + i * d.width, b = a + +d.width;
      const part = (100 * counts[i] / d.total).toPrecision(3);
      show(event, a.toPrecision(3) + ' to ' + b.toPrecision(3) + d.unit + ': '
        + counts[i].toLocaleString('en') + ' values, ' + part + ' %');
    });
    svg.addEventListener('mouseleave', hide);
  });
  document.querySelectorAll('table.sortable').forEach(table => {
    table.querySelectorAll('th').forEach((head, column) => head.addEventListener('click', () => {
      const down = !head.classList.contains('down');
      table.querySelectorAll('th').forEach(h => h.classList.remove('up', 'down'));
      head.classList.add(down ? 'down' : 'up');
      const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const x = key(a), y = key(b), n = x - y;
        return Number.isNaN(n) ? x.localeCompare(y) : n;
      };
      const body = table.tBodies[0], rows = [...body.rows].sort(compare);
      body.append(...(down ? rows.reverse() : rows));
    }));
  });
})();
"""
