"""The style sheet of the report page: light and dark, desktop and phone, and print.

Contract: `style_sheet()` needs nothing from outside the page: system fonts, no images.
"""

from __future__ import annotations

from farskip_compile.explain.layout import Cell
from farskip_compile.explain.palette import DARK, LIGHT

VARIABLES = {Cell.READ: "--read", Cell.LEFT_OUT: "--left-out", Cell.SKIPPED: "--skipped", Cell.OWN: "--own"}


def style_sheet() -> str:
    """CSS for the whole page."""
    light = "".join(f"{name}:{LIGHT[cell]};" for cell, name in VARIABLES.items())
    dark = "".join(f"{name}:{DARK[cell]};" for cell, name in VARIABLES.items())
    return (
        f":root{{color-scheme:light dark;{light}{_LIGHT}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{dark}{_DARK}}}}}"
        f"{_RULES}"
    )


_LIGHT = (
    "--paper:#fbfbfa;--card:#fff;--ink:#1d2126;--soft:#5f6770;--rule:#e3e5e8;--good:#2b7a3d;--good-back:#e6f4e9;"
    "--bad:#b42318;--bad-back:#fdeceb;--wait:#8a5a00;--wait-back:#fdf3dc;--early:#1c7293;--mark:#fff;"
)
_DARK = (
    "--paper:#15181d;--card:#1c2026;--ink:#e6e8eb;--soft:#9aa3ad;--rule:#2f353d;--good:#7ddc93;--good-back:#1b3322;"
    "--bad:#ff9d94;--bad-back:#41201d;--wait:#ffcf75;--wait-back:#3a2f16;--early:#6cc5e6;--mark:#15181d;"
)
_RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:62rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .4rem}
h2{font-size:1.2rem;margin:2.8rem 0 .6rem}
h3{font-size:1.02rem;margin:1.6rem 0 .4rem}
p{margin:.5rem 0}
.soft{color:var(--soft)}
.small{font-size:.88rem}
code{font:.88em/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.verdict{display:flex;gap:.8rem;align-items:center;border-radius:10px;padding:.9rem 1.1rem;margin:1.2rem 0;
font-size:1.1rem;font-weight:600}
.good{color:var(--good)}.bad{color:var(--bad)}.wait{color:var(--wait)}
.verdict.good{background:var(--good-back)}.verdict.bad{background:var(--bad-back)}
.problem{background:var(--bad-back);color:var(--bad);border-radius:8px;padding:.6rem .9rem}
.problem.wait{background:var(--wait-back);color:var(--wait)}
section.case{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:.4rem 1.25rem 1.25rem;
margin:1.2rem 0}
.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th{text-align:left;font-weight:600;color:var(--soft);vertical-align:bottom}
th,td{padding:.42rem .9rem .42rem 0;border-bottom:1px solid var(--rule);vertical-align:top}
td.number,th.number{text-align:right}
td.number{font-variant-numeric:tabular-nums;white-space:nowrap}
td.tight{white-space:nowrap}
tr.changed td.after{color:var(--left-out);font-weight:600}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(19rem,1fr));gap:1.2rem}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:.9rem}
figcaption{font-size:.9rem;color:var(--soft);margin-top:.5rem}
figcaption b{color:var(--ink)}
svg{display:block;max-width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
svg text.name{font-size:11.5px;fill:var(--soft)}
svg text.small{font-size:11px;fill:var(--soft)}
svg text.stream{font-size:15px;font-style:italic;font-weight:600}
.read rect{fill:var(--read)}.left-out rect{fill:var(--left-out)}.skipped rect{fill:var(--skipped)}
.own rect{fill:var(--own)}
.own path{stroke:var(--soft);fill:none;stroke-width:1.4}
.left-out circle{fill:none;stroke:var(--mark);stroke-width:2}
.table g:hover rect{stroke:var(--ink);stroke-width:1.5}
.trunk,.wire,.far,.early{fill:none;stroke-width:1.8;stroke:var(--soft)}
.trunk{stroke-width:3;stroke:var(--ink)}
.far{stroke:var(--left-out);stroke-dasharray:6 4}
.early{stroke:var(--early);stroke-width:2.4}
.tip{fill:var(--soft)}.far-tip{fill:var(--left-out)}
.box{fill:var(--own);stroke:var(--rule)}
.far-box{stroke:var(--left-out);stroke-width:1.6}
.plus{fill:var(--card);stroke:var(--ink);stroke-width:1.8}
.sign{stroke:var(--ink);stroke-width:1.8;fill:none}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;font-size:.88rem;color:var(--soft)}
.key{display:inline-flex;gap:.4rem;align-items:center}
details summary{cursor:pointer;color:var(--soft);font-size:.92rem;margin-top:.8rem}
@media(max-width:40rem){
main{padding:1.4rem .9rem 3rem}
section.case{padding:.2rem .8rem .9rem}
table.cards thead{position:absolute;clip-path:inset(50%)}
table.cards tr{display:block;border:1px solid var(--rule);border-radius:8px;padding:.5rem .7rem;margin:.5rem 0}
table.cards td{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.14rem 0;text-align:right;
white-space:normal}
table.cards td::before{content:attr(data-label);color:var(--soft);text-align:left;flex:none}
table.cards td:first-child{font-weight:600}
table.cards td:first-child::before{content:none}
table.cards td:empty{display:none}
}
@media print{section.case,figure{break-inside:avoid}details{display:block}}
"""
