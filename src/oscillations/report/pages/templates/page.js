// Tables that sort, filter and hide columns; links that open what they point into. The page reads the same without it.
"use strict";
const words = new Intl.Collator("en", { numeric: true });
const textOf = (row, column) => row.cells[column]?.dataset.sort ?? row.cells[column]?.textContent.trim() ?? "";
// Numbers before words; what is empty, and the headings of groups, come last in both directions.
function sort(table, column, direction) {
  const order = (a, b) => {
    const [one, other] = [textOf(a, column), textOf(b, column)], [x, y] = [parseFloat(one), parseFloat(other)];
    if (!one || !other) return !one - !other;
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || direction * words.compare(one, other);
    return direction * (x - y);
  };
  table.classList.add("sorted");
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
}
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    sort(table, column, direction);
  }));
}
for (const field of document.querySelectorAll("input[data-filter]")) {
  const table = document.getElementById(field.dataset.filter);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let group = null, shown = false;
    for (const row of table.tBodies[0].rows) {
      if (row.classList.contains("group")) { if (group) group.hidden = !shown; group = row; shown = false; continue; }
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
      shown ||= !row.hidden;
    }
    if (group) group.hidden = !shown;
  });
}
for (const box of document.querySelectorAll(".columns input")) {
  const table = document.getElementById(box.closest(".columns").dataset.table), column = Number(box.dataset.column);
  const apply = () => { for (const row of table.rows) if (!row.classList.contains("group")) row.cells[column].hidden = !box.checked; };
  box.addEventListener("change", apply);
  apply();
}
function reveal(hash) {
  const target = hash && document.getElementById(decodeURIComponent(hash.slice(1)));
  if (!target) return;
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  target.scrollIntoView();
}
addEventListener("click", event => reveal(event.target.closest?.('a[href^="#"]')?.hash));  // also where one already is
for (const link of document.querySelectorAll(".menu a")) link.addEventListener("click", () => { link.closest("details").open = false; });
for (const row of document.querySelectorAll("#t-seeds tbody tr")) {  // a seed's row shows its lines
  const lines = document.querySelectorAll(`[data-seed="${row.cells[0].textContent.trim()}"]`), figures = document.querySelectorAll(".curves");
  const mark = on => { lines.forEach(line => line.classList.toggle("shown", on)); figures.forEach(figure => figure.classList.toggle("chosen", on)); };
  row.addEventListener("mouseenter", () => mark(true));
  row.addEventListener("mouseleave", () => mark(false));
}
addEventListener("hashchange", () => reveal(location.hash));
reveal(location.hash);
for (const tools of document.querySelectorAll(".tools [hidden]")) tools.hidden = false;
