"use strict";
// A contact map: its cells painted for what is in view, its hover, and its scores at any threshold.
(async () => {
  const D = page.data(), L = D.sequence.length, STEPS = D.steps, pairCount = (L * (L - 1)) / 2;
  const RANGES = ["local", "short", "medium", "long", "between chains"];
  const SPANS = [`1–${D.bandStarts[0] - 1}`, `${D.bandStarts[0]}–${D.bandStarts[1] - 1}`, `${D.bandStarts[1]}–${D.bandStarts[2] - 1}`, `≥ ${D.bandStarts[2]}`, ""];
  const MAX_CELLS = 800; // cells to a side that are painted: beyond, blocks of residues, each with its strongest pair
  const by = (id) => document.getElementById(id);

  const chainOf = Uint16Array.from(D.chainLengths.flatMap((length, chain) => Array(length).fill(chain)));
  const startOf = D.chainLengths.map((_, chain) => D.chainLengths.slice(0, chain).reduce((sum, length) => sum + length, 0));
  const isComplex = D.chainLengths.length > 1;
  const bandOf = Uint8Array.from({ length: L }, (_, apart) => D.bandStarts.filter((start) => apart >= start).length);
  const rangeOf = (i, j) => (isComplex && chainOf[i] !== chainOf[j] ? 4 : bandOf[Math.abs(i - j)]);

  const unpack = async (text) => new Uint8Array(await page.inflate(text, "deflate").arrayBuffer());
  async function square(text) {
    const upper = await unpack(text), full = new Uint8Array(L * L);
    for (let i = 0, at = 0; i < L; i++) for (let j = i + 1; j < L; j++, at++) full[i * L + j] = full[j * L + i] = upper[at];
    return full;
  }
  const [Bokeh, truth, positions, expected, ...maps] = await Promise.all([
    page.library(),
    D.truth && square(D.truth),
    D.positions && unpack(D.positions).then((bytes) => new Float32Array(bytes.buffer)),
    Promise.all(D.distances.map((packed) => packed && square(packed))), // tenths of Å
    ...D.maps.map(square),
  ]);

  // What residues are called: number and letter as the structure file has them, else counted from 1.
  const number = (i) => (D.numbers && D.numbers[i]) || (D.numbers ? `(${i + 1})` : String(i + 1 - startOf[chainOf[i]]));
  const chainName = (i) => (D.chains && D.chains[i]) || (isComplex ? D.chainNames[chainOf[i]] : "");
  const residue = (i) => `${D.sequence[i]}${number(i)}${isComplex || (D.chains && D.chains[i]) ? `:${chainName(i)}` : ""}`;
  const probability = (q) => (q === 0 ? "0" : `${((q - 0.5) / STEPS).toFixed(3)}`);
  const distance = (i, j) => positions && Math.hypot(...[0, 1, 2].map((axis) => positions[3 * i + axis] - positions[3 * j + axis]));
  const TRUTH = ["unknown", "no contact", "contact"];

  // Threshold, ranges and what is below the diagonal.
  const state = { step: Math.min(STEPS - 1, Math.round(D.threshold * STEPS)), on: [true, true, true, true, true], lower: "same", called: false };
  const LOWER = {
    ...(maps.length > 1 ? { difference: "difference of the two models", other: "the other model" } : {}),
    ...(expected[0] ? { distance: "expected distance" } : {}),
    ...(truth ? { verdict: "right, wrong and missed pairs", truth: "true contacts" } : {}),
    same: "the same, mirrored",
  };
  state.lower = Object.keys(LOWER).find((kind) => kind !== "distance");

  // Colours that readers with colour-vision deficiency tell apart (Okabe and Ito's), in light and dark.
  const COLOURS = {
    light: { blank: "#ffffff", off: "#eceff2", ramp: ["#ffffff", "#deebf7", "#9ecae1", "#4292c6", "#08519c", "#08306b"], right: "#0072b2", wrong: "#d55e00", missed: "#b9b3a7", contact: "#b2182b", unknown: "#e4e1dc", first: "#5e3c99", second: "#e66101" },
    dark: { blank: "#14181d", off: "#232a32", ramp: ["#14181d", "#17334d", "#1f6391", "#3a9bcf", "#8fd3f2", "#f2fbff"], right: "#56b4e9", wrong: "#f28e2b", missed: "#77706a", contact: "#ff8a70", unknown: "#3a3733", first: "#b9a3ee", second: "#fdb863" },
  };
  const colours = () => COLOURS[page.isDark() ? "dark" : "light"];
  const style = () => ["unknown", "wrong", "right"].forEach((name) => document.documentElement.style.setProperty(`--${name}`, colours()[name]));
  style(); // the table's keys have the map's colours
  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const packed = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  const between = (stops, t) => {
    const at = Math.min(stops.length - 2, Math.floor(t * (stops.length - 1))), part = t * (stops.length - 1) - at;
    const [a, b] = [rgb(stops[at]), rgb(stops[at + 1])];
    return packed(a.map((value, k) => Math.round(value + part * (b[k] - value))));
  };

  // Each way to paint: a value for a pair, of which a block shows the strongest, and a colour for the value.
  function painter(kind, which) {
    const c = colours(), map = maps[which], other = maps[1 - which], step = state.step, shade = (hex) => packed(rgb(hex));
    if (kind === "distance") { // near pairs are the strong ones
      const apart = expected[which] || expected[0];
      return { value: (at) => STEPS - apart[at], colour: Uint32Array.from({ length: STEPS + 1 }, (_, v) => between(c.ramp, v / STEPS)) };
    }
    if (kind === "truth") {
      return { value: (at) => truth[at], colour: [c.unknown, c.blank, c.contact].map(shade) };
    }
    if (kind === "verdict") { // 0 unknown, 1 nothing, 2 missed, 3 wrong, 4 right
      const value = (at) => (truth[at] === 0 ? 0 : map[at] > step ? (truth[at] === 2 ? 4 : 3) : truth[at] === 2 ? 2 : 1);
      return { value, colour: [c.unknown, c.blank, c.missed, c.wrong, c.right].map(shade) };
    }
    if (kind === "difference") { // even: the first is higher, odd: the second
      const signs = [which === 0 ? c.first : c.second, which === 0 ? c.second : c.first];
      const value = (at) => { const gap = map[at] - other[at]; return gap >= 0 ? 2 * gap : -2 * gap + 1; };
      return { value, colour: Uint32Array.from({ length: 2 * STEPS + 2 }, (_, v) => between([c.blank, signs[v & 1]], Math.min(1, Math.sqrt((v >> 1) / STEPS)))) };
    }
    const shown = kind === "other" ? other : map, least = state.called ? step : -1;
    const colour = Uint32Array.from({ length: STEPS + 1 }, (_, q) => (q > least ? between(c.ramp, q / STEPS) : shade(c.blank)));
    return { value: (at) => shown[at], colour };
  }

  const view = () => {
    const clip = (a, b) => [Math.max(0, Math.floor(Math.min(a, b) - 0.5)), Math.min(L, Math.ceil(Math.max(a, b) - 0.5))];
    return { x: clip(figures[0].x_range.start, figures[0].x_range.end), y: clip(figures[0].y_range.start, figures[0].y_range.end) };
  };
  function paint(which) {
    const { x: [x0, x1], y: [y0, y1] } = view();
    if (x1 <= x0 || y1 <= y0) return;
    const block = Math.max(1, Math.ceil(Math.max(x1 - x0, y1 - y0) / MAX_CELLS));
    const left = Math.floor(x0 / block) * block, top = Math.floor(y0 / block) * block;
    const columns = Math.ceil((x1 - left) / block), rows = Math.ceil((y1 - top) / block);
    const image = new Uint32Array(rows * columns), off = packed(rgb(colours().off)), blank = packed(rgb(colours().blank));
    const upper = painter("same", which), lower = painter(state.lower, which), all = state.on.every(Boolean);
    for (let r = 0; r < rows; r++) {
      const i0 = top + r * block, i1 = Math.min(L, i0 + block);
      for (let c = 0; c < columns; c++) {
        const j0 = left + c * block, j1 = Math.min(L, j0 + block), { value, colour } = j0 >= i0 ? upper : lower;
        let strongest = -1;
        for (let i = i0; i < i1; i++) {
          for (let j = j0; j < j1; j++) {
            if (i !== j && (all || state.on[rangeOf(i, j)])) { const v = value(i * L + j); if (v > strongest) strongest = v; }
          }
        }
        image[r * columns + c] = strongest >= 0 ? colour[strongest] : i0 === j0 ? blank : off;
      }
    }
    cells[which].data = {
      image: [ndarray(image, { dtype: "uint32", shape: [rows, columns] })], hover: [""],
      x: [left + 0.5], y: [top + 0.5], dw: [columns * block], dh: [rows * block],
    };
  }
  let waiting = false;
  const repaint = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; maps.forEach((_, which) => paint(which)); });
  };

  // Pairs by range, truth and step, counted once: scores at any threshold are then sums.
  const counts = maps.map((map) => {
    const found = Array.from({ length: 5 }, () => [0, 1, 2].map(() => new Float64Array(STEPS + 1)));
    for (let i = 0; i < L; i++) for (let j = i + 1; j < L; j++) found[rangeOf(i, j)][truth ? truth[i * L + j] : 0][map[i * L + j]]++;
    return found;
  });
  function score(which) {
    let [tp, fp, fn, tn, unknown] = [0, 0, 0, 0, 0];
    counts[which].forEach((labels, range) => {
      if (!state.on[range]) return;
      labels.forEach((steps, label) => steps.forEach((n, q) => {
        const above = q > state.step;
        if (above && label === 0) unknown += n;
        if (label === 2) above ? (tp += n) : (fn += n);
        if (label === 1) above ? (fp += n) : (tn += n);
      }));
    });
    const below = Math.sqrt(tp + fp) * Math.sqrt(tp + fn) * Math.sqrt(tn + fp) * Math.sqrt(tn + fn);
    return { called: truth ? tp + fp : unknown, unknown: truth ? unknown : 0, right: tp, precision: tp / (tp + fp), recall: tp / (tp + fn), mcc: below ? (tp * tn - fp * fn) / below : 0 };
  }
  function showScores() {
    const rows = maps.map((_, which) => {
      const { called, unknown, right, precision, recall, mcc } = score(which);
      const text = (value) => (Number.isNaN(value) ? "–" : value.toFixed(3).replace("-0.000", "0.000"));
      const counted = unknown ? { value: called, text: `${called} (+${unknown} unknown)` } : called;
      return [maps.length > 1 ? D.names[which] : "this map", counted, ...(truth ? [right, text(precision), text(recall), text(mcc)] : [])];
    });
    const titles = ["model", "pairs above", ...(truth ? ["right", "precision", "recall", "MCC"] : [])];
    page.table(by("scores"), { columns: titles.map((title, at) => ({ title, text: at === 0, long: at === 0, sort: false })), rows, caption: "Scores at the threshold" });
  }

  // The list of pairs.
  const columns = [
    { title: "rank" }, { title: "i", hint: "residue" }, { title: "j", hint: "residue" }, { title: "|i − j|" },
    ...D.names.map((_, at) => ({ title: D.names.length > 1 ? `p ${"AB"[at]}` : "p", digits: 3, hint: "probability" })),
    ...(positions ? [{ title: "Å", digits: 1, hint: "distance of the C-betas" }] : []),
    ...(truth ? [{ title: "truth", text: true }] : []),
  ];
  const listed = D.pairs.map(([i, j, ...p], rank) => {
    const apart = distance(i, j), contact = truth && truth[i * L + j];
    const key = ["var(--unknown)", "var(--wrong)", "var(--right)"][contact];
    return [
      rank + 1, { value: i + 1, text: residue(i) }, { value: j + 1, text: residue(j) }, chainOf[i] === chainOf[j] ? j - i : null, ...p,
      ...(positions ? [Number.isNaN(apart) ? null : apart] : []), ...(truth ? [{ value: TRUTH[contact], key }] : []),
    ];
  });
  const list = page.table(by("pairs"), { columns, rows: listed, caption: "Most probable pairs", pick: (index) => pickPair(D.pairs[index][0], D.pairs[index][1], true) });
  const indexOf = new Map(D.pairs.map(([i, j], index) => [i * L + j, index]));
  function pickPair(i, j, move) {
    picked.data = { x: [j + 1, i + 1], y: [i + 1, j + 1] };
    list.select(indexOf.get(Math.min(i, j) * L + Math.max(i, j)));
    if (!move) return;
    const { x_range: x, y_range: y } = figures[0], wide = x.end - x.start, high = y.end - y.start; // high < 0
    const inside = (v, a, b) => v > Math.min(a, b) && v < Math.max(a, b);
    if (!inside(j + 1, x.start, x.end) || !inside(i + 1, y.start, y.end)) {
      x.setv({ start: j + 1 - wide / 2, end: j + 1 + wide / 2 });
      y.setv({ start: i + 1 - high / 2, end: i + 1 + high / 2 });
    }
  }
  // A file takes plain columns, as those of `--formats csv`: residues counted from 1 and as the structure numbers them.
  function pairsFile() {
    const kept = D.pairs.filter(([i, j]) => state.on[rangeOf(i, j)]);
    const head = ["i", "j", "letter_i", "letter_j", "chain_i", "chain_j", "number_i", "number_j", "separation", ...D.names.map((_, at) => (at ? "probability_beside" : "probability")), "distance", "contact"];
    const quoted = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
    const line = ([i, j, ...p]) => {
      const apart = distance(i, j), contact = truth ? truth[i * L + j] : 0, named = (values, k) => (values ? values[k] : "");
      return [i + 1, j + 1, D.sequence[i], D.sequence[j], named(D.chains, i), named(D.chains, j), named(D.numbers, i), named(D.numbers, j),
        chainOf[i] === chainOf[j] ? j - i : "", ...p, apart >= 0 ? apart.toFixed(2) : "", contact ? contact - 1 : ""];
    };
    return [head, ...kept.map(line)].map((row) => row.map((value) => quoted(String(value))).join(",")).join("\n") + "\n";
  }

  // Hover and axes ask here.
  self.contactlm = {
    tick: (at) => (at >= 1 && at <= L && Number.isInteger(at) ? `${D.sequence[at - 1]}${number(at - 1)}` : ""),
    tell(what, x, y) {
      const j = Math.round(x) - 1, i = Math.round(y) - 1;
      if (i < 0 || j < 0 || i >= L || j >= L) return "";
      if (what === "pair") return `${residue(i)} – ${residue(j)}`;
      if (what === "probability") return i === j ? "the diagonal" : maps.map((map, at) => `p${maps.length > 1 ? ` ${"AB"[at]}` : ""} ${probability(map[i * L + j])}${expected[at] ? ` (${(expected[at][i * L + j] / 10).toFixed(1)} Å expected)` : ""}`).join(", ");
      const apart = distance(i, j), range = RANGES[rangeOf(i, j)];
      return [chainOf[i] === chainOf[j] ? `${Math.abs(i - j)} apart (${range})` : range, apart >= 0 ? `${apart.toFixed(1)} Å` : "", truth ? TRUTH[truth[i * L + j]] : ""].filter(Boolean).join(" · ");
    },
    state, score, view,
  };

  await Bokeh.embed.embed_item(D.plot, "plot");
  const document_ = Bokeh.documents[0], { ndarray } = Bokeh.require("core/util/ndarray");
  const figures = maps.map((_, at) => document_.get_model_by_name(`map${at}`));
  const cells = maps.map((_, at) => document_.get_model_by_name(`cells${at}`)), picked = document_.get_model_by_name("picked");
  // All pages share their figures: ranges, chains, helices and strands are put in here.
  const STATES = { H: ["helix", "#CC79A7"], E: ["strand", "#009E73"] };
  const margin = D.states ? 0.022 * L : 0, ends = [0.5 - margin, L + 0.5];
  const home = [ends, [...ends].reverse()].map(([start, end]) => ({ start, end }));
  [figures[0].x_range, figures[0].y_range].forEach((range, at) => range.setv({ ...home[at], reset_start: home[at].start, reset_end: home[at].end }));
  const starts = D.chainLengths.slice(0, -1).map((_, at) => 0.5 + D.chainLengths.slice(0, at + 1).reduce((a, b) => a + b)), none = starts.map(() => 0.5), far = starts.map(() => L + 0.5);
  document_.get_model_by_name("lines").data = { x0: [...starts, ...none], y0: [...none, ...starts], x1: [...starts, ...far], y1: [...far, ...starts] };
  const runs = [...(D.states || "").matchAll(/H+|E+/g)].map((run) => [run.index + 0.5, run.index + run[0].length + 0.5, STATES[run[0][0]][1]]);
  const inner = runs.map(() => 0.5 - 0.15 * margin), outer = runs.map(() => 0.5 - 0.85 * margin), [from, to, color] = [0, 1, 2].map((at) => runs.map((run) => run[at]));
  document_.get_model_by_name("states").data = { left: [...from, ...outer], right: [...to, ...inner], top: [...outer, ...from], bottom: [...inner, ...to], color: [...color, ...color] };
  page.colourFigures(figures);
  self.contactlm.figures = figures;

  const threshold = by("threshold"), lower = by("lower");
  const legend = () => {
    const c = colours(), item = (colour, text) => page.make("span", {}, page.make("i", { style: `background:${colour}` }), text);
    const ramp = page.make("span", {}, "contact probability 0 ", page.make("i", { className: "ramp", style: `background:linear-gradient(90deg, ${c.ramp.join(",")})` }), "1");
    const second = {
      verdict: [[c.right, "right"], [c.wrong, "wrong"], [c.missed, "missed"], [c.unknown, "unknown"]],
      distance: [[c.ramp.at(-1), "near"], [c.blank, `${STEPS / 10} Å`]],
      truth: [[c.contact, "contact"], [c.unknown, "unknown"]],
      difference: [[c.first, "A higher"], [c.second, "B higher"]],
    }[state.lower] || [];
    const states = Object.entries(STATES).filter(([letter]) => (D.states || "").includes(letter)).map(([, [name, colour]]) => [colour, name]);
    const off = state.on.every(Boolean) ? [] : [[c.off, "ranges that are turned off"]];
    by("legend").replaceChildren(ramp, ...[...second, ...off, ...states].map(([colour, text]) => item(colour, text)));
  };
  const update = () => {
    by("at").value = (state.step / STEPS).toFixed(3);
    list.filter((index) => state.on[rangeOf(D.pairs[index][0], D.pairs[index][1])]);
    showScores();
    legend();
    repaint();
  };
  threshold.value = state.step;
  threshold.addEventListener("input", () => { state.step = Number(threshold.value); update(); });
  lower.append(...Object.entries(LOWER).map(([value, text]) => page.make("option", { value }, text)));
  lower.value = state.lower;
  lower.addEventListener("change", () => { state.lower = lower.value; update(); });
  by("called").addEventListener("change", (event) => { state.called = event.target.checked; update(); });
  RANGES.slice(0, isComplex ? 5 : 4).forEach((name, at) => {
    const box = page.make("input", { type: "checkbox", checked: true, id: `range${at}` });
    state.on[at] = box.checked = at > 0; // neighbours in sequence always touch
    box.addEventListener("change", () => { state.on[at] = box.checked; update(); });
    by("ranges").append(page.make("label", { title: SPANS[at] && `${SPANS[at]} residues apart` }, box, ` ${name} ${SPANS[at]}`));
  });
  by("search").addEventListener("input", (event) => list.search(event.target.value));
  by("csv").addEventListener("click", () => page.download(`${D.id.replace(/[^\w.-]/g, "_")}.csv`, pairsFile()));
  by("notes").append(...D.notes.map((note) => page.make("span", { style: "display:block" }, note)));

  const { x_range: X, y_range: Y } = figures[0];
  for (const range of [X, Y]) range.change.connect(repaint);
  page.onTheme(() => { style(); legend(); repaint(); });
  figures.forEach((figure) => figure.on_event("tap", (event) => {
    const i = Math.round(event.y) - 1, j = Math.round(event.x) - 1;
    if (i >= 0 && j >= 0 && i < L && j < L && i !== j) pickPair(Math.min(i, j), Math.max(i, j), false);
  }));
  const around = (range, factor) => {
    const middle = (range.start + range.end) / 2, half = ((range.end - range.start) / 2) * factor;
    range.setv({ start: middle - half, end: middle + half });
  };
  const move = (range, share) => { const by_ = Math.abs(range.end - range.start) * share; range.setv({ start: range.start + by_, end: range.end + by_ }); };
  const KEYS = {
    ArrowLeft: () => move(X, -0.1), ArrowRight: () => move(X, 0.1), ArrowUp: () => move(Y, -0.1), ArrowDown: () => move(Y, 0.1),
    "+": () => [X, Y].forEach((range) => around(range, 0.7)), "=": () => KEYS["+"](), "-": () => [X, Y].forEach((range) => around(range, 1 / 0.7)),
    0: () => { X.setv(home[0]); Y.setv(home[1]); },
  };
  by("plot").addEventListener("keydown", (event) => { if (KEYS[event.key]) { KEYS[event.key](); event.preventDefault(); } });
  update();
  requestAnimationFrame(() => requestAnimationFrame(() => page.ready()));
})().catch(page.fail);
