"use strict";
// Texts of rows are untrusted: they only ever become text nodes.
const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const make = (tag, text, kind) => {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
const number = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString());
const percent = (value) => (value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`);

// Theme: the system's, unless the reader switches.
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const paint = (on) => { root.dataset.theme = on ? "dark" : "light"; };
paint(dark.matches);
dark.addEventListener("change", (event) => paint(event.matches));
byId("theme").addEventListener("click", () => paint(root.dataset.theme !== "dark"));

const say = (button, text) => {
  const before = button.textContent;
  button.textContent = text;
  setTimeout(() => { button.textContent = before; }, 1500);
};
const copy = async (button, text) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // A page from a file may not use the clipboard: the older way works there.
    const area = make("textarea", text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(button, "Copied");
};
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", () => copy(button, button.dataset.copy));
}
const save = (name, lines) => {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/plain" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

const unpacked = async () => {
  const bytes = Uint8Array.from(atob(byId("data").textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
};

const start = (data) => {
  const size = data.id.length;
  const all = [...Array(size).keys()];
  const place = new Map(data.id.map((id, at) => [id, at]));
  const ticks = new Map();

  const state = (at) => {
    const kind = data.kinds[data.kind[at]];
    const name = data.rank[at] === null ? kind : `rank ${data.rank[at]}${kind === "filler" ? ", filler" : ""}`;
    return make("span", name, data.rank[at] === null ? "tag" : "tag chosen");
  };
  const jump = (id, text) => {
    const link = make("a", text);
    link.href = `#row=${encodeURIComponent(id)}`;
    return link;
  };
  const detail = (at) => {
    const box = make("div", undefined, "inside");
    for (const [name, column] of [["prompt", data.prompt], ["response", data.response]]) {
      const part = make("p", undefined, "whole");
      part.append(make("span", name, "tag"), column[at]);
      box.append(part);
    }
    if (data.reason[at]) box.append(make("p", data.reason[at]));
    const facts = [data.id[at], data.sources[data.source[at]], `score ${number(data.score[at])}`];
    if (data.stability[at] !== null) facts.push(`selected in ${percent(data.stability[at])} of refits`);
    if (data.issues[at].length) facts.push(data.issues[at].map((one) => data.issue_kinds[one]).join(", "));
    box.append(make("p", facts.join(" · "), "note"));
    const serves = data.serves[at];
    if (serves && serves.length) {
      const line = make("p", "Serves best: ", "note");
      serves.forEach(([id, value, known], nth) => {
        if (nth) line.append("; ");
        const text = data.targets[id] || id;
        line.append(place.has(id) ? jump(id, text) : make("span", text), ` (${number(value)}, ${known ? "labelled" : "predicted"})`);
      });
      box.append(line);
    }
    return box;
  };

  // The table: sorted, filtered, searched, page by page.
  const PAGE = 50;
  const body = byId("table").tBodies[0], search = byId("search"), found = byId("found");
  const filters = { source: byId("by-source"), region: byId("by-region"), kind: byId("by-kind") };
  const fill = (select, names) => names.forEach((name, value) => {
    const option = make("option", name);
    option.value = String(value);
    select.append(option);
  });
  fill(filters.source, data.sources);
  fill(filters.region, data.regions);
  const KINDS = {
    all: () => true,
    chosen: (at) => data.rank[at] !== null,
    dropped: (at) => data.rank[at] === null,
    removed: (at) => data.kinds[data.kind[at]] === "removed",
    filler: (at) => data.kinds[data.kind[at]] === "filler",
    weak: (at) => data.rank[at] !== null && data.stability[at] !== null && data.stability[at] < 0.5,
    ticked: (at) => ticks.has(at),
  };
  data.issue_kinds.forEach((name, nth) => { KINDS[`issue-${nth}`] = (at) => data.issues[at].includes(nth); });
  const hay = new Array(size);
  const text = (at) => {
    hay[at] ??= [data.id[at], data.sources[data.source[at]], data.prompt[at], data.response[at], data.reason[at]].join("\n").toLowerCase();
    return hay[at];
  };
  const KEYS = {
    rank: (at) => data.rank[at], score: (at) => data.score[at], gain: (at) => data.gain[at], stability: (at) => data.stability[at],
    length: (at) => data.length[at], source: (at) => data.sources[data.source[at]], text: (at) => data.prompt[at].toLowerCase(),
  };
  let matching = all, page = 0, by = "rank", up = true;
  const compare = (a, b) => {
    const [x, y] = [KEYS[by](a), KEYS[by](b)];
    // Behind the chosen rows come those that would add most.
    if (x === null && y === null) return (data.gain[b] ?? -Infinity) - (data.gain[a] ?? -Infinity) || a - b;
    if (x === null || y === null) return x === null ? 1 : -1;
    const order = x < y ? -1 : x > y ? 1 : 0;
    return (up ? order : -order) || a - b;
  };
  const tick = (at, way) => {
    const box = make("input");
    box.type = "checkbox";
    box.checked = ticks.get(at) === way;
    box.setAttribute("aria-label", `${way === "in" ? "Take in" : "Leave out"} ${data.id[at]}`);
    box.addEventListener("change", () => {
      if (box.checked) ticks.set(at, way); else ticks.delete(at);
      counted();
      const other = box.closest("tr").querySelector(`input[data-way="${way === "in" ? "out" : "in"}"]`);
      if (box.checked) other.checked = false;
    });
    box.dataset.way = way;
    return box;
  };
  const cell = (row, content, label, kind) => {
    const made = make("td", undefined, kind);
    made.dataset.label = label;
    made.append(content);
    row.append(made);
  };
  const line = (at) => {
    const row = make("tr");
    row.dataset.at = at;
    const open = make("button", data.prompt[at] || data.id[at], "open");
    open.type = "button";
    open.setAttribute("aria-expanded", "false");
    open.addEventListener("click", () => toggle(row, open, at));
    cell(row, state(at), "rank");
    cell(row, open, "text", "text");
    cell(row, number(data.score[at]), "score", "figure");
    cell(row, number(data.gain[at]), "gain", "figure");
    cell(row, percent(data.stability[at]), "stability", "figure");
    cell(row, data.sources[data.source[at]], "source", "source");
    cell(row, data.length[at].toLocaleString("en"), "length", "figure");
    cell(row, tick(at, "in"), "in", "tick");
    cell(row, tick(at, "out"), "out", "tick");
    return row;
  };
  const toggle = (row, open, at) => {
    const next = row.nextElementSibling;
    const shown = open.getAttribute("aria-expanded") === "true";
    open.setAttribute("aria-expanded", String(!shown));
    if (shown) return next.remove();
    const extra = make("tr", undefined, "detail"), inside = make("td");
    inside.colSpan = 9;
    inside.append(detail(at));
    extra.append(inside);
    row.after(extra);
  };
  const draw = () => {
    const pages = Math.max(1, Math.ceil(matching.length / PAGE));
    page = Math.min(page, pages - 1);
    body.replaceChildren(...matching.slice(page * PAGE, page * PAGE + PAGE).map(line));
    found.textContent = `${matching.length.toLocaleString("en")} of ${size.toLocaleString("en")} rows`;
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("before").disabled = page === 0;
    byId("after").disabled = page >= pages - 1;
    for (const head of document.querySelectorAll("#table th[data-by]")) {
      head.setAttribute("aria-sort", head.dataset.by !== by ? "none" : up ? "ascending" : "descending");
    }
  };
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kind = KINDS[filters.kind.value], source = filters.source.value, region = filters.region.value;
    matching = all.filter((at) => kind(at) && (!source || data.source[at] === Number(source))
      && (!region || data.region[at] === Number(region)) && words.every((word) => text(at).includes(word))).sort(compare);
    page = 0;
    draw();
  };
  for (const one of [search, ...Object.values(filters)]) one.addEventListener("input", filter);
  byId("before").addEventListener("click", () => { page -= 1; draw(); });
  byId("after").addEventListener("click", () => { page += 1; draw(); });
  for (const head of document.querySelectorAll("#table th[data-by] button")) {
    head.addEventListener("click", () => {
      const wanted = head.parentElement.dataset.by;
      // What is large is looked for first, but for ranks and texts.
      up = wanted === by ? !up : ["rank", "source", "text"].includes(wanted);
      by = wanted;
      filter();
    });
  }

  // Ticks: files of ids and the command that takes them.
  const ids = (way) => [...ticks].filter(([, of]) => of === way).map(([at]) => data.id[at]);
  const quoted = (path) => (/^[\w./-]+$/.test(path) ? path : `'${path.replaceAll("'", `'\\''`)}'`);
  const command = () => ["nncift select", quoted(data.run), ...(ids("in").length ? ["--include include.txt"] : []),
    ...(ids("out").length ? ["--exclude exclude.txt"] : [])].join(" ");
  const counted = () => {
    const [inside, outside] = [ids("in").length, ids("out").length];
    byId("ticked").textContent = `${inside} in, ${outside} out`;
    byId("save-in").disabled = !inside;
    byId("save-out").disabled = !outside;
    byId("command").disabled = !inside && !outside;
    byId("command-text").textContent = inside || outside ? command() : "";
  };
  byId("save-in").addEventListener("click", () => save("include.txt", ids("in")));
  byId("save-out").addEventListener("click", () => save("exclude.txt", ids("out")));
  byId("command").addEventListener("click", (event) => copy(event.currentTarget, command()));
  counted();
  filter();

  // Links of the page to a row open it in the table.
  const go = () => {
    const match = /^#row=(.*)$/.exec(location.hash), issue = /^#issue=(\d+)$/.exec(location.hash);
    if (issue) {
      filters.kind.value = `issue-${issue[1]}`;
      search.value = filters.source.value = filters.region.value = "";
      filter();
      byId("rows").scrollIntoView();
    }
    // The table has grown since the browser went there.
    if (!match && !issue && location.hash.length > 1) byId(location.hash.slice(1))?.scrollIntoView();
    if (!match) return;
    const at = place.get(decodeURIComponent(match[1]));
    if (at === undefined) return;
    search.value = filters.source.value = filters.region.value = "";
    filters.kind.value = "all";
    filter();
    page = Math.floor(matching.indexOf(at) / PAGE);
    draw();
    const row = body.querySelector(`tr[data-at="${at}"]`), open = row.querySelector("button.open");
    toggle(row, open, at);
    open.focus();
    row.scrollIntoView({ block: "center" });
  };
  window.addEventListener("hashchange", go);
  go();
  plan(data, state, detail);
};

// Map: pointing, tapping, and arrow keys show a row; colours by choice, score or source; zoom.
const plan = (data, state, detail) => {
  const map = byId("map"), seen = byId("seen");
  if (!map) return;
  const points = [...map.querySelectorAll("circle")];
  let here = null;
  const show = (point) => {
    if (here) here.classList.remove("here");
    here = point;
    here.classList.add("here");
    seen.replaceChildren(state(point.dataset.row), detail(point.dataset.row));
  };
  for (const kind of ["mouseover", "click"]) {
    map.addEventListener(kind, (event) => { if (event.target.dataset.row !== undefined) show(event.target); });
  }
  const where = (point) => [Number(point.getAttribute("cx")), Number(point.getAttribute("cy"))];
  map.addEventListener("keydown", (event) => {
    const ways = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    const way = ways[event.key];
    if (!way || !points.length) return;
    event.preventDefault();
    if (!here) return show(points[points.length - 1]);
    const [x, y] = where(here);
    let best = null, nearest = Infinity;
    for (const point of points) {
      const [dx, dy] = where(point).map((value, axis) => value - [x, y][axis]);
      const along = dx * way[0] + dy * way[1];
      const aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
      const far = along + 2 * aside;
      if (point !== here && along > 0 && far < nearest) { best = point; nearest = far; }
    }
    if (best) show(best);
  });

  const colour = byId("colour"), key = byId("map-key"), KINDS = 8;
  const scores = points.map((point) => data.score[point.dataset.row]).filter((value) => value !== null).sort((a, b) => a - b);
  const swatch = (kind, name) => {
    const one = make("span");
    one.append(make("i", undefined, `swatch ${kind}`), name);
    return one;
  };
  const FIFTHS = ["lowest fifth of scores", "second", "third", "fourth", "highest fifth"];
  const recolour = () => {
    for (const point of points) {
      const at = point.dataset.row, chosen = data.rank[at] !== null;
      let kind = chosen ? "chosen" : "dropped";
      if (colour.value === "source") kind = `p${Math.min(data.source[at], KINDS - 1)}`;
      if (colour.value === "region") kind = data.region[at] === null ? "dropped" : `p${data.region[at] % KINDS}`;
      if (colour.value === "score") {
        const below = scores.findIndex((value) => value >= data.score[at]);
        kind = data.score[at] === null ? "dropped" : `h${Math.min(4, Math.floor(5 * Math.max(0, below) / scores.length))}`;
      }
      point.setAttribute("class", `${kind}${chosen && colour.value !== "choice" ? " ring" : ""}${point === here ? " here" : ""}`);
    }
    const names = { choice: [["chosen", "chosen"], ["dropped", "dropped"]] };
    names.source = data.sources.slice(0, KINDS).map((name, nth) => [`p${nth}`, nth === KINDS - 1 && data.sources.length > KINDS ? "others" : name]);
    names.region = data.regions.slice(0, KINDS).map((name, nth) => [`p${nth}`, name]);
    names.score = FIFTHS.map((name, nth) => [`h${nth}`, name]);
    key.replaceChildren(...names[colour.value].map(([kind, name]) => swatch(kind, name)),
      ...(colour.value === "choice" ? [] : [swatch("ring", "chosen")]));
  };
  colour.addEventListener("input", recolour);
  const [, , width, height] = map.getAttribute("viewBox").split(" ").map(Number);
  let zoom = 1, centre = [width / 2, height / 2];
  const look = () => {
    const [w, h] = [width / zoom, height / zoom];
    centre = [Math.min(Math.max(centre[0], w / 2), width - w / 2), Math.min(Math.max(centre[1], h / 2), height - h / 2)];
    map.setAttribute("viewBox", `${centre[0] - w / 2} ${centre[1] - h / 2} ${w} ${h}`);
    for (const point of points) point.setAttribute("r", (data.rank[point.dataset.row] === null ? 2.6 : 3.4) / Math.sqrt(zoom));
  };
  const nearer = (factor) => {
    zoom = Math.min(16, Math.max(1, zoom * factor));
    if (here) centre = where(here);
    look();
  };
  byId("nearer").addEventListener("click", () => nearer(2));
  byId("farther").addEventListener("click", () => nearer(0.5));
};

unpacked().then(start).catch((error) => {
  byId("found").textContent = `The rows cannot be shown: ${error.message}. A browser of 2023 or later is needed.`;
});
