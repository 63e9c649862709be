// The style and the script of the page.
#pragma once

#include <string_view>

namespace verify {

inline constexpr std::string_view report_style = R"css(
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --head: #f3f5f8;
  --link: #0b57b8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e9ee; --soft: #a7b0bb; --line: #3a424d;
  --head: #1f242c; --link: #7db4ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.3rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 0 0 .3rem; } .figures + h3 { margin-top: 2rem; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--link); }
pre { padding: .7rem; background: var(--head); border: 1px solid var(--line); overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
.drawing { overflow-x: auto; }
.drawing svg { display: block; width: 100%; min-width: 21rem; max-width: 42rem; height: auto; }
.drawing [color="black"] { color: var(--ink); } .drawing [fill="black"] { fill: var(--ink); }
.drawing [stroke="black"] { stroke: var(--ink); }
figcaption { color: var(--soft); font-size: .875rem; max-width: 42rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .55rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { background: var(--head); } th.word, td.word { text-align: left; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible, summary:focus-visible, .scroll:focus-visible, .drawing:focus-visible
  { outline: 2px solid var(--link); outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
summary { cursor: pointer; padding: .4rem 0; overflow-wrap: anywhere; }
.note { border-left: 4px solid var(--link); padding: .3rem .8rem; background: var(--head); }
@media print { body { max-width: none; font-size: 10pt; padding: 0; } .drawing svg { min-width: 0; }
  .scroll { overflow: visible; } .figures { grid-template-columns: 1fr 1fr; }
  table { font-size: 6.5pt; } th, td { padding: .1rem .25rem; white-space: normal; } }
)css";

/// Tables sort by the column whose heading is pressed; all is shown on paper.
inline constexpr std::string_view report_script = R"js(
"use strict";
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
    const column = head.cellIndex, down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const words = head.classList.contains("word");
    const key = row => {
      const text = row.cells[column].textContent;
      const number = parseFloat(text.replace("> ", ""));
      return words ? text : Number.isNaN(number) ? Infinity : number;
    };
    const sign = down ? -1 : 1;
    const compare = (a, b) => words ? a.localeCompare(b, undefined, { numeric: true }) : a === b ? 0 : a < b ? -1 : 1;
    const rows = Array.from(body.rows, row => [key(row), row]);
    rows.sort((a, b) => sign * compare(a[0], b[0]));
    body.append(...rows.map(entry => entry[1]));
  });
}
const openAll = open => { for (const d of document.querySelectorAll("details")) d.open = open; };
let before = [];
addEventListener("beforeprint", () => { before = [...document.querySelectorAll("details[open]")]; openAll(true); });
addEventListener("afterprint", () => { openAll(false); for (const d of before) d.open = true; });
)js";

}  // namespace verify
