"""How a report looks: in light and in dark, on a desk and on a phone."""

_COLOURS = {  # in light, in dark: eight that also the colour-blind tell apart
    "light": ["#0072b2", "#d55e00", "#009e73", "#b0579a", "#8a6d00", "#3a9bdc", "#555", "#a3001b"],
    "dark": ["#56a8e0", "#ff8a3d", "#2fc79b", "#e08fc6", "#e3c54a", "#8fd0ff", "#bbb", "#ff6b7f"],
}


def _variables(mode: str) -> str:
    return "".join(f"--c{i}:{colour};" for i, colour in enumerate(_COLOURS[mode]))


STYLE = (
    f""":root {{ color-scheme: light dark; --back:#fff; --text:#1b1e23; --quiet:#5c6470;
  --rule:#dde1e7; --soft:#f5f6f8; --warn:#8a4b00; {_variables("light")} }}
@media (prefers-color-scheme: dark) {{ :root {{ --back:#15171b; --text:#e4e7ec; --quiet:#9aa3b0;
  --rule:#343a43; --soft:#1e2127; --warn:#ffb454; {_variables("dark")} }} }}
"""
    + "".join(
        f".c{i}{{stroke:var(--c{i})}} .k{i},.part{i}{{background:var(--c{i})}}\n" for i in range(8)
    )
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 16px; }
h1 { font-size: 24px; margin: 8px 0 0; } h2 { font-size: 19px; margin: 32px 0 8px; }
p { margin: 8px 0; } ul { margin: 4px 0; padding-left: 20px; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); font-size: 13px; } .warning { color: var(--warn); }
.box { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; margin: 8px 0; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: left; vertical-align: top; white-space: nowrap;
  border-top: 1px solid var(--rule); }
td { max-width: 360px; white-space: normal; min-width: 64px; overflow-wrap: anywhere; }
thead th { border-top: 0; background: var(--soft); white-space: normal; vertical-align: bottom; }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--back);
  max-width: 300px; white-space: normal; overflow-wrap: anywhere; }
small { color: var(--quiet); white-space: nowrap; }
summary { cursor: pointer; padding: 6px 0; }
code { font-size: 12.5px; }
.name b { display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 6px; }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 2px 18px; }
.charts, .pictures { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
figure { margin: 0; min-width: 0; } figcaption { font-size: 13px; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--quiet); } .grid { stroke: var(--rule); fill: none; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.thin { stroke-width: 1; opacity: 0.45; } .dashed { stroke-dasharray: 5 3; }
img { width: 100%; max-width: 530px; height: auto; image-rendering: pixelated; display: block; }
.by-time { display: none; } #by-time:checked ~ .charts .by-time,
#by-time:checked ~ details .by-time { display: block; }
#by-time:checked ~ .charts .by-step, #by-time:checked ~ details .by-step { display: none; }
label { margin: 0 14px 0 4px; }
.bar { display: flex; width: 160px; height: 14px; margin-top: 3px; border-radius: 3px;
  overflow: hidden; background: var(--soft); }
@media (max-width: 600px) { main { padding: 12px; } tbody th { max-width: 150px; } }
"""
)
