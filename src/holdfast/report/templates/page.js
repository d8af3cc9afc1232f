"use strict";
(() => {
  const PAGE = 50;
  const SVG = "http://www.w3.org/2000/svg";
  const store = document.getElementById("data");
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
  if (!store) return;

  const { rows, names, eps, reach, statuses } = JSON.parse(store.textContent);
  const [ID, LABEL, PREDICTION, STATUS, DISTANCE, ATTACK, RADIUS, METHOD, FORWARDS, BACKWARDS, QUERIES, SHA, MARGIN, GUARANTEE, ARITHMETIC, ALPHA] = Array(16).keys();
  const name = (k) => (k >= 0 && k < names.length ? names[k] : String(k));
  const digits = Math.max(0, Math.min(9, 3 - Math.floor(Math.log10(reach))));
  const size = (v) => (v === null ? "" : v > 0 && v < 10 ** -digits ? v.toExponential(1) : v.toFixed(digits));
  const columns = [
    { key: "id", title: "Sample", at: ID, num: true }, { key: "label", title: "Label", at: LABEL, text: name },
    { key: "prediction", title: "Says", at: PREDICTION, text: name }, { key: "status", title: "Status", at: STATUS },
    { key: "sides", title: "Both sides" },
    { key: "distance", title: "Witness at", at: DISTANCE, num: true, text: size }, { key: "attack", title: "Found by", at: ATTACK },
    { key: "radius", title: "Safe up to", at: RADIUS, num: true, text: size }, { key: "method", title: "Proved by", at: METHOD },
    { key: "forwards", title: "Forwards", at: FORWARDS, num: true }, { key: "backwards", title: "Backwards", at: BACKWARDS, num: true },
    { key: "queries", title: "Queries", at: QUERIES, num: true },
  ];
  const state = { status: "", sort: "id", down: false, find: "", limit: PAGE };
  const table = document.getElementById("table");
  const [head, body] = [table.tHead.rows[0], table.tBodies[0]];
  const [chips, find, shown, more] = ["chips", "find", "shown", "more"].map((id) => document.getElementById(id));

  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const draw = (tag, attributes) => {
    const element = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const strip = (row) => {
    const wide = 120, x = (v) => (wide * Math.min(v, reach)) / reach;
    const picture = draw("svg", { width: wide, height: 14, viewBox: `0 0 ${wide} 14`, role: "img" });
    picture.setAttribute("aria-label", `safe up to ${size(row[RADIUS]) || "nothing"}, broken from ${size(row[DISTANCE]) || "nothing found"}`);
    picture.append(draw("rect", { x: 0, y: 3, width: wide, height: 8, class: "strip-gap" }));
    if (row[RADIUS]) picture.append(draw("rect", { x: 0, y: 3, width: x(row[RADIUS]), height: 8, class: "strip-safe" }));
    if (row[DISTANCE] !== null) {
      picture.append(draw("rect", { x: x(row[DISTANCE]), y: 3, width: wide - x(row[DISTANCE]), height: 8, class: "strip-broken" }));
      picture.append(draw("rect", { x: Math.min(x(row[DISTANCE]), wide - 2), y: 3, width: 2, height: 8, class: "strip-hit" }));
    }
    picture.append(draw("path", { d: `M${x(eps)} 0V14`, class: "strip-eps" }));
    return picture;
  };
  const detail = (row) => {
    const parts = [];
    if (row[SHA]) parts.push(`witness ${row[SHA]}, margin ${row[MARGIN] === null ? "not seen" : Number(row[MARGIN].toPrecision(4))}`);
    if (row[RADIUS] !== null) {
      const alpha = row[ALPHA] === null ? "" : `, wrong with chance at most ${row[ALPHA]}`;
      parts.push(`certificate: ${row[GUARANTEE]}, by ${row[METHOD]}${row[ARITHMETIC] ? `, in ${row[ARITHMETIC]}` : ""}${alpha}`);
    }
    const line = make("tr", undefined, "detail"), cell = make("td", parts.join("; ") || "no witness and no certificate");
    cell.colSpan = columns.length;
    line.append(cell);
    return line;
  };
  const line = (row) => {
    const out = make("tr");
    out.dataset.id = row[ID];
    for (const column of columns) {
      const value = column.at === undefined ? null : row[column.at];
      const cell = make("td", undefined, column.num ? "num" : "");
      if (column.key === "sides") cell.append(strip(row));
      else if (column.key === "id") {
        const button = make("button", value);
        button.type = "button";
        button.setAttribute("aria-expanded", "false");
        button.addEventListener("click", () => {
          const open = button.getAttribute("aria-expanded") === "true";
          button.setAttribute("aria-expanded", String(!open));
          if (open) out.nextSibling.remove(); else out.after(detail(row));
        });
        cell.append(button);
      } else if (column.key === "status") {
        const mark = draw("svg", { width: 10, height: 10, viewBox: "0 0 10 10", "aria-hidden": "true" });
        mark.append(draw("rect", { width: 10, height: 10, rx: 2, class: `part ${value.toLowerCase()}` }));
        const both = make("span", undefined, "status");
        both.append(mark, value);
        cell.append(both);
      } else if (value !== null) cell.textContent = column.text ? column.text(value) : value;
      out.append(cell);
    }
    return out;
  };
  const wanted = () => {
    const word = state.find.trim().toLowerCase();
    const hits = (row) => [row[ID], name(row[LABEL]), name(row[PREDICTION]), row[ATTACK], row[METHOD]].some((v) => String(v ?? "").toLowerCase().includes(word));
    const kept = rows.filter((row) => (!state.status || row[STATUS] === state.status) && (!word || hits(row)));
    const column = columns.find((c) => c.key === state.sort), sign = state.down ? -1 : 1;
    const value = (row) => (column.text === name ? name(row[column.at]) : row[column.at]);
    return kept.sort((a, b) => {
      const [u, v] = [value(a), value(b)];
      if (u === null || v === null) return (u === null) - (v === null) || a[ID] - b[ID];
      return sign * (u < v ? -1 : u > v ? 1 : 0) || a[ID] - b[ID];
    });
  };
  const show = () => {
    const kept = wanted();
    body.replaceChildren(...kept.slice(0, state.limit).map(line));
    shown.textContent = `${Math.min(state.limit, kept.length)} of ${kept.length} shown`;
    more.hidden = kept.length <= state.limit;
    for (const cell of head.cells) {
      if (cell.dataset.key === state.sort) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
      const arrow = cell.querySelector("span");
      if (arrow) arrow.textContent = cell.dataset.key === state.sort ? (state.down ? " ↓" : " ↑") : "";
    }
    for (const chip of chips.children) chip.setAttribute("aria-pressed", String(chip.dataset.status === state.status));
  };
  const change = (what) => { Object.assign(state, { limit: PAGE }, what); show(); };
  const follow = () => {
    const [place, query] = location.hash.slice(1).split("?");
    if (place !== "samples" || query === undefined) return;
    const asked = new URLSearchParams(query), sort = asked.get("sort");
    find.value = asked.get("find") ?? "";
    change({
      status: statuses.includes(asked.get("status")) ? asked.get("status") : "", find: find.value, down: asked.get("dir") === "down",
      sort: columns.some((c) => c.key === sort && c.at !== undefined) ? sort : "id",
    });
    document.getElementById("samples").scrollIntoView();
  };

  for (const column of columns) {
    const cell = make("th", column.at === undefined ? column.title : undefined, column.num ? "num" : "");
    cell.dataset.key = column.key;
    cell.scope = "col";
    if (column.at !== undefined) {
      const button = make("button", column.title);
      button.type = "button";
      button.append(make("span"));
      button.addEventListener("click", () => change({ sort: column.key, down: state.sort === column.key && !state.down }));
      cell.append(button);
    }
    head.append(cell);
  }
  for (const status of ["", ...statuses]) {
    const number = status ? rows.filter((row) => row[STATUS] === status).length : rows.length;
    const chip = make("button", `${status || "all"} ${number}`);
    chip.type = "button";
    chip.dataset.status = status;
    chip.addEventListener("click", () => change({ status }));
    chips.append(chip);
  }
  find.addEventListener("input", () => change({ find: find.value }));
  let screen = PAGE;
  window.addEventListener("beforeprint", () => { screen = state.limit; state.limit = Infinity; show(); });
  window.addEventListener("afterprint", () => { state.limit = screen; show(); });
  more.addEventListener("click", () => { state.limit += 4 * PAGE; show(); });
  window.addEventListener("hashchange", follow);
  show();
  follow();
})();
