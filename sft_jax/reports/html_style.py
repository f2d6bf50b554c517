"""How a page looks: its style sheet, and the inks of the figures on it."""

FIGURE_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# Colours of figures that mean "ink" or "paper" and turn with the page; data keep theirs.
FIGURE_COLORS = {
    "#000000": "ink",
    "#555555": "frame",
    "#e5e5e5": "grid",
    "#e8e8e8": "absent",
    "#a34700": "rust",
    "#0072b2": "blue",
    "#f2dc9b": "kept",
}
_FIGURE_LIGHT = {
    "ink": "#1d2329",
    "frame": "#5c6670",
    "grid": "#e5e8eb",
    "absent": "#e8e8e8",
    "rust": "#a34700",
    "blue": "#0072b2",
    "kept": "#f2dc9b",
}
_FIGURE_DARK = {
    "ink": "#e4e7ea",
    "frame": "#98a2ac",
    "grid": "#2b3138",
    "absent": "#2b3138",
    "rust": "#f0a06a",
    "blue": "#3d9fd6",
    "kept": "#6d5c26",
}


def figure_style() -> str:
    """The style sheet inside a figure, which is an image of its own on the page."""
    light, dark = (
        "".join(f"--{name}:{color};" for name, color in inks.items())
        for inks in (_FIGURE_LIGHT, _FIGURE_DARK)
    )
    return (
        f"svg{{{light}}}text{{fill:var(--ink)}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}"
    )


STYLE = """
:root {
  --paper: #ffffff; --ink: #1d2329; --quiet: #5c6670; --line: #e3e6e9; --soft: #f5f6f7;
  --accent: #00639c;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --ink: #e4e7ea; --quiet: #98a2ac; --line: #2b3138; --soft: #1c2024;
    --accent: #6cb8e6;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 3.5rem 1.5rem 4rem; max-width: 62rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word;
}
h1, h2 { line-height: 1.2; letter-spacing: -0.015em; font-weight: 650; text-wrap: balance; }
h1 { margin: 0.25rem 0 0.75rem; font-size: clamp(1.6rem, 1.2rem + 2vw, 2.3rem); }
h2 { margin: 0 0 1rem; font-size: 1.35rem; }
p { margin: 0 0 1rem; max-width: 44rem; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: 0.18em; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font-size: 0.88em; }
.kind { margin: 0; color: var(--quiet); font-size: 0.85rem; letter-spacing: 0.02em; }
.lead { color: var(--quiet); font-size: 1.08rem; }
.headlines {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr));
  gap: 1.5rem 2rem; margin: 2rem 0; padding: 1.5rem 0;
  border: solid var(--line); border-width: 1px 0;
}
.headlines dt { color: var(--quiet); font-size: 0.85rem; }
.headlines dd { margin: 0; font-variant-numeric: tabular-nums; }
.headlines .value { font-size: 1.7rem; line-height: 1.3; font-weight: 600; }
.headlines .note { color: var(--quiet); font-size: 0.85rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 0; padding: 0; }
nav li { list-style: none; font-size: 0.92rem; }
section { padding-top: 3.25rem; }
.scroll {
  max-width: 100%; overflow-x: auto; margin: 0 0 1.75rem;
  /* A shade at the right edge, which moves away with the last column: there is more to see. */
  background:
    linear-gradient(to left, var(--paper) 35%, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--line), transparent) right / 0.9rem 100% no-repeat scroll;
}
.scroll:focus-visible, pre:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; min-width: min(100%, 26rem); font-size: 0.92rem; }
.caption { margin: 0 0 0.25rem; font-size: 0.92rem; font-weight: 600; }
th, td { padding: 0.4rem 1.4rem 0.4rem 0; text-align: left; vertical-align: baseline; }
th { font-weight: 400; }
thead th { color: var(--quiet); font-size: 0.85rem; vertical-align: bottom; }
thead tr { border-bottom: 1px solid var(--quiet); }
tbody tr { border-bottom: 1px solid var(--line); }
tr > :last-child { padding-right: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
th, td { white-space: nowrap; }
.long { min-width: 16rem; white-space: normal; overflow-wrap: anywhere; }
tr > :first-child { position: sticky; left: 0; background: var(--paper); }
.none { color: var(--quiet); }
figure { margin: 0 0 2rem; }
figcaption { margin-top: 0.6rem; max-width: 44rem; color: var(--quiet); font-size: 0.9rem; }
.pictures { display: grid; gap: 1.5rem 2rem; align-items: start; }
.pictures.several { grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.pictures .wide { grid-column: 1 / -1; margin: 0; }
img { display: block; max-width: 100%; height: auto; }
.wide img { width: 100%; min-width: 42rem; }
pre {
  margin: 0 0 1.5rem; padding: 1rem 1.15rem; overflow-x: auto;
  background: var(--soft); border-radius: 0.4rem; font-size: 0.9rem; line-height: 1.55;
}
pre code { font-size: inherit; }
footer {
  margin-top: 4rem; padding-top: 1.25rem; border-top: 1px solid var(--line);
  color: var(--quiet); font-size: 0.85rem;
}
@media (max-width: 36rem) {
  body { padding: 2rem 1.1rem 3rem; }
  .headlines { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.25rem 1rem; }
  .headlines .value { font-size: 1.4rem; }
  section { padding-top: 2.5rem; }
}
@media print {
  body { max-width: none; padding: 0; }
  nav { display: none; }
  section { break-inside: avoid-page; }
}
"""
