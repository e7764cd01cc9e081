"""What a report looks like, in light and in dark."""

STYLE = """
:root { color-scheme: light dark; --bg: #fbfbfa; --card: #fff; --text: #1c2024; --soft: #5d666f;
  --line: #dfe3e6; --good: #1f7a5c; --fair: #a86400; --bad: #c0262d; --favored: #b9ddd0;
  --allowed: #e6f2ed; --shadow: 0 1px 2px #0001; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171a; --card: #1c2125; --text: #e8eaec;
  --soft: #a0a9b1; --line: #343b41; --good: #5cc9a2; --fair: #e2a345; --bad: #ff7a7d; --favored: #24574a;
  --allowed: #1d3832; --shadow: none; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--bg);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p, ul { max-width: 50rem; } .soft, figcaption { color: var(--soft); font-size: .87rem; }
code { font: .85em ui-monospace, monospace; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem;
  padding: 0; margin: 1.5rem 0; list-style: none; max-width: none; }
.cards li, .panel { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .8rem 1rem; box-shadow: var(--shadow); }
.cards b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
b.good { color: var(--good); } b.fair { color: var(--fair); } b.bad { color: var(--bad); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: .75rem; }
figure { margin: 0; } figure + figure { margin-top: 0; } .bars figure { margin-bottom: .75rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg .name { fill: var(--text); paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.region.allowed { fill: var(--allowed); } .region.favored { fill: var(--favored); }
svg .upright { transform: rotate(-90deg); }
.grid, .level { stroke: var(--line); stroke-width: 1; } .level { stroke-dasharray: 4 4; }
.point { stroke: var(--card); stroke-width: .7; } .point:hover { stroke: var(--text); stroke-width: 2; }
.favored { fill: var(--good); } .allowed { fill: var(--fair); } .outlier { fill: var(--bad); }
.stack { height: .75rem; min-width: 8rem; border-radius: .25rem; }
.scroll { overflow: auto; max-height: 34rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; min-width: 6.5rem; padding: .4rem .8rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { position: sticky; top: 0; background: var(--card); font-weight: 600; }
.number { text-align: right; white-space: nowrap; } tr:last-child td { border-bottom: 0; }
:focus-visible { outline: 2px solid var(--good); outline-offset: 2px; }
@media print { .scroll { max-height: none; } body { max-width: none; } }
"""
