"use strict";
// Texts of rows are untrusted: they only ever become text nodes.
const rows = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const make = (tag, text, kind) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
const number = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString());

// Theme: the system's, unless the reader switches.
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const paint = (on) => { root.dataset.theme = on ? "dark" : "light"; };
paint(dark.matches);
dark.addEventListener("change", (event) => paint(event.matches));
document.getElementById("theme").addEventListener("click", () => paint(root.dataset.theme !== "dark"));

const detail = (row) => {
  const box = make("div", undefined, "inside");
  const prompt = make("p"), response = make("p");
  prompt.append(make("span", "prompt", "tag"), row.prompt);
  response.append(make("span", "response", "tag"), row.response);
  box.append(prompt, response, make("p", row.reason));
  const score = row.score === null ? "no score" : `score ${number(row.score)}`;
  box.append(make("p", `${row.id} · ${row.source} · ${score}`, "note"));
  if (row.serves && row.serves.length) {
    const served = row.serves.map(([id, value, known]) => `${id} (${number(value)}, ${known ? "labelled" : "predicted"})`);
    box.append(make("p", `Serves best: ${served.join(", ")}`, "note"));
  }
  return box;
};
const state = (row) => make("span", row.selected ? `rank ${row.rank}` : "dropped", row.selected ? "tag chosen" : "tag");

// Map: pointing, tapping, and arrow keys show a row.
const map = document.getElementById("map");
const seen = document.getElementById("seen");
const points = [...map.querySelectorAll("circle")];
let here = null;
const show = (point) => {
  if (here) here.classList.remove("here");
  here = point;
  here.classList.add("here");
  const row = rows[point.dataset.row];
  seen.replaceChildren(state(row), detail(row));
};
for (const kind of ["mouseover", "click"]) {
  map.addEventListener(kind, (event) => { if (event.target.dataset.row !== undefined) show(event.target); });
}
const place = (point) => [Number(point.getAttribute("cx")), Number(point.getAttribute("cy"))];
map.addEventListener("keydown", (event) => {
  const ways = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  const way = ways[event.key];
  if (!way || !points.length) return;
  event.preventDefault();
  if (!here) return show(points[points.length - 1]);
  const [x, y] = place(here);
  let best = null, nearest = Infinity;
  for (const point of points) {
    const [dx, dy] = place(point).map((value, axis) => value - [x, y][axis]);
    const along = dx * way[0] + dy * way[1];
    const aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
    const far = along + 2 * aside;
    if (point !== here && along > 0 && far < nearest) { best = point; nearest = far; }
  }
  if (best) show(best);
});

// Rows: search over text, id, source and reason.
const PAGE = 40;
const list = document.getElementById("list"), more = document.getElementById("more");
const search = document.getElementById("search"), only = document.getElementById("only"), found = document.getElementById("found");
const hay = rows.map((row) => [row.id, row.source, row.prompt, row.response, row.reason].join("\n").toLowerCase());
let matching = [], shown = 0;
const extend = () => {
  for (const at of matching.slice(shown, shown + PAGE)) {
    const row = rows[at];
    const item = make("details"), head = make("summary");
    head.append(state(row), make("span", row.prompt, "text"));
    item.append(head);
    item.addEventListener("toggle", () => { if (item.open && item.children.length < 2) item.append(detail(row)); });
    list.append(item);
  }
  shown = Math.min(shown + PAGE, matching.length);
  more.hidden = shown >= matching.length;
};
const filter = () => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  matching = rows.map((_, at) => at).filter((at) => (!only.checked || rows[at].selected) && words.every((word) => hay[at].includes(word)));
  found.textContent = `${matching.length} of ${rows.length} rows`;
  list.replaceChildren();
  shown = 0;
  extend();
};
search.addEventListener("input", filter);
only.addEventListener("change", filter);
more.addEventListener("click", extend);
filter();
