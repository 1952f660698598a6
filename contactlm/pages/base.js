"use strict";
// What every page has: data, theme, tables that sort and search, files to download. Text goes in as text, never as HTML.
const page = (() => {
  const root = document.documentElement, watchers = [];
  const system = matchMedia("(prefers-color-scheme: dark)");
  let wanted = "auto";

  const fail = (error) => {
    const place = document.getElementById("trouble");
    place.textContent = `This page cannot be drawn: ${error.message || error}`;
    place.hidden = false;
    console.error(error);
  };
  const isDark = () => root.dataset.theme === "dark";
  const setTheme = (forced) => {
    const before = root.dataset.theme, now = forced || (wanted === "auto" ? (system.matches ? "dark" : "light") : wanted);
    root.dataset.theme = now;
    if (before !== now) watchers.forEach((watch) => watch(now === "dark"));
  };
  setTheme();
  system.addEventListener("change", () => setTheme());
  addEventListener("beforeprint", () => setTheme("light"));
  addEventListener("afterprint", () => setTheme());
  const themeButton = document.getElementById("theme");
  if (themeButton) {
    themeButton.addEventListener("click", () => {
      wanted = isDark() ? "light" : "dark";
      setTheme();
    });
  }

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const inflate = (text, kind) => new Response(new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream(kind)));

  async function library() {
    if (!self.DecompressionStream) throw new Error("it needs a browser of 2023 or later (DecompressionStream)");
    const script = document.createElement("script");
    script.textContent = await inflate(document.getElementById("library").textContent, "gzip").text();
    document.head.append(script);
    return self.Bokeh;
  }

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function download(name, text) {
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // A cell is a value (a number, a text, null), or {value, text, href, links, image, key}; the value is what sorts.
  const plain = (cell) => (cell !== null && typeof cell === "object" ? cell.value : cell);
  function fill(td, cell, column) {
    const full = cell !== null && typeof cell === "object" ? cell : { value: cell };
    let text = full.text ?? full.value ?? "";
    if (typeof text === "number" && column.digits !== undefined) text = text.toFixed(column.digits).replace(/^-(0\.?0*)$/, "$1");
    if (full.image) td.append(make("img", { src: full.image, alt: full.alt || "", loading: "lazy" }));
    else if (full.links) td.append(...full.links.map((link) => make("a", { href: link.href, className: "file" }, link.text)));
    else if (full.href) td.append(make("a", { href: full.href }, String(text)));
    else if (full.key) td.append(make("i", { className: "key", style: `background:${full.key}` }), String(text));
    else td.textContent = String(text);
  }
  function compare(a, b) {
    const empty = (value) => value === null || value === undefined || value === "" || Number.isNaN(value);
    if (empty(a) || empty(b)) return { last: Number(empty(a)) - Number(empty(b)) };
    return { order: typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }) };
  }

  // columns: [{title, text?, digits?, sort?, hint?}]; rows: arrays of cells; pick(row index) makes rows selectable.
  function table(place, { columns, rows, pick, caption }) {
    const head = make("tr"), body = make("tbody"), lines = [];
    let sorted = null, shown = () => true, words = [];
    const element = make("table", {}, make("thead", {}, head), body);
    if (caption) element.setAttribute("aria-label", caption);
    columns.forEach((column, at) => {
      const th = make("th", { scope: "col", className: column.text ? "text" : "", title: column.hint || "" });
      if (column.sort === false) th.textContent = column.title;
      else {
        th.append(make("button", { type: "button" }, column.title));
        th.firstChild.addEventListener("click", () => sort(at, sorted && sorted.at === at ? !sorted.down : !column.text));
      }
      head.append(th);
    });
    rows.forEach((row, index) => {
      const tr = make("tr");
      row.forEach((cell, at) => {
        const td = make("td", { className: (columns[at].text ? "text" : "") + (columns[at].long ? " long" : "") });
        fill(td, cell, columns[at]);
        tr.append(td);
      });
      if (pick) {
        Object.assign(tr, { tabIndex: 0, className: "pickable" });
        tr.addEventListener("click", () => pick(index));
        tr.addEventListener("keydown", (event) => event.key === "Enter" && pick(index));
      }
      lines.push({ tr, row, index, words: row.map((cell) => String((cell && cell.text) ?? plain(cell) ?? "")).join(" ").toLowerCase() });
    });
    function sort(at, down) {
      sorted = { at, down };
      lines.sort((a, b) => {
        const { last, order } = compare(plain(a.row[at]), plain(b.row[at]));
        return last !== undefined ? last || a.index - b.index : (down ? -order : order) || a.index - b.index;
      });
      [...head.children].forEach((th, k) => (k === at ? th.setAttribute("aria-sort", down ? "descending" : "ascending") : th.removeAttribute("aria-sort")));
      body.replaceChildren(...lines.map((line) => line.tr));
    }
    function visible() {
      return lines.filter((line) => shown(line.index) && words.every((word) => line.words.includes(word)));
    }
    function refresh() {
      const kept = new Set(visible());
      lines.forEach((line) => (line.tr.hidden = !kept.has(line)));
      return kept.size;
    }
    body.append(...lines.map((line) => line.tr));
    place.replaceChildren(element);
    const quoted = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
    return {
      element,
      sort,
      search: (text) => ((words = text.toLowerCase().split(/\s+/).filter(Boolean)), refresh()),
      filter: (keep) => ((shown = keep), refresh()),
      select: (index) => lines.forEach((line) => {
        line.tr.toggleAttribute("aria-selected", false);
        if (line.index === index) {
          line.tr.setAttribute("aria-selected", "true");
          line.tr.scrollIntoView({ block: "nearest" });
        }
      }),
      csv: () => [columns.map((column) => column.title), ...visible().map((line) => line.row.map((cell) => plain(cell) ?? ""))]
        .map((row) => row.map((value) => quoted(String(value))).join(",")).join("\n") + "\n",
    };
  }

  // Bokeh's figures take their colours from the page, and again whenever the theme changes.
  function colourFigures(figures) {
    const paint = () => {
      const style = getComputedStyle(root), [ink, quiet, line] = ["--ink", "--quiet", "--line"].map((name) => style.getPropertyValue(name).trim());
      for (const figure of figures) {
        figure.setv({ outline_line_color: line });
        figure.title?.setv?.({ text_color: ink });
        for (const axis of [...figure.above, ...figure.below, ...figure.left, ...figure.right].filter((part) => "major_label_text_color" in part)) {
          axis.setv({ major_label_text_color: quiet, axis_label_text_color: ink, axis_line_color: line, major_tick_line_color: line, minor_tick_line_color: line });
        }
        for (const grid of figure.center.filter((part) => "grid_line_color" in part)) grid.setv({ grid_line_color: line, grid_line_alpha: 0.6 });
        for (const legend of figure.center.concat(figure.right).filter((part) => "label_text_color" in part)) {
          legend.setv({ label_text_color: ink, background_fill_alpha: 0, border_line_alpha: 0 });
        }
      }
    };
    watchers.push(paint);
    paint();
  }

  return {
    data: () => JSON.parse(document.getElementById("data").textContent),
    isDark, inflate, bytes, library, make, download, table, colourFigures, fail,
    onTheme: (watch) => watchers.push(watch),
    ready: (done) => { root.dataset.ready = String(Math.round(performance.now())); return done; },
  };
})();
