"use strict";
// A report of runs: which of them the figures show, and two arms protein by protein.
(async () => {
  const D = page.data(), by = (id) => document.getElementById(id), P = D.proteins;
  const Bokeh = await page.library();
  await Bokeh.embed.embed_item(D.plot, "figures");
  const document_ = Bokeh.documents[0], figures = Array.from({ length: D.figures }, (_, k) => document_.get_model_by_name(`figure${k}`));
  page.colourFigures(figures);

  // Runs on and off.
  const ofRun = (k) => figures.flatMap((figure) => figure.renderers.filter((renderer) => renderer.name === `run${k}`));
  D.runs.forEach(({ name, color }, k) => {
    const box = page.make("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => ofRun(k).forEach((renderer) => renderer.setv({ visible: box.checked })));
    by("runs").append(page.make("label", {}, box, page.make("i", { className: "key", style: `background:${color}` }), name));
  });

  // Black on light is white on dark.
  const ink = () => figures.forEach((figure) => figure.renderers.forEach(({ glyph }) => {
    for (const part of ["line_color", "fill_color"]) {
      if (["#000000", "#ffffff"].includes(glyph[part]?.value)) glyph[part] = { value: page.isDark() ? "#ffffff" : "#000000" };
    }
  }));
  page.onTheme(ink);
  ink();

  // Two arms, protein by protein.
  if (P) {
    by("by-protein").hidden = false;
    await Bokeh.embed.embed_item(D.scatter, "scatter");
    const scatter = Bokeh.documents[1].get_model_by_name("scatter"), source = Bokeh.documents[1].get_model_by_name("proteins");
    page.colourFigures([scatter]);
    const arms = Object.keys(P.scores), scores = Object.keys(P.scores[arms[0]]).filter((name) => arms.every((arm) => name in P.scores[arm]));
    const fill = (id, values, chosen) => by(id).append(...values.map((value) => page.make("option", { value, selected: value === chosen }, value)));
    fill("arm-x", arms, arms[0]);
    fill("arm-y", arms, arms[1]);
    fill("score", scores, scores[0]);
    let table = null;
    const draw = () => {
      const [x, y, score] = ["arm-x", "arm-y", "score"].map((id) => by(id).value);
      const rows = P.ids.map((id, at) => ({ id, at, x: P.scores[x][score][at], y: P.scores[y][score][at] })).filter((row) => row.x !== null && row.y !== null);
      const colour = ({ x: a, y: b }) => (a > b ? "#0072B2" : a < b ? "#D55E00" : "#8a8a8a");
      source.setv({ data: { x: rows.map((row) => row.x), y: rows.map((row) => row.y), id: rows.map((row) => row.id), color: rows.map(colour) } });
      source.selected.indices = [];
      const values = rows.flatMap((row) => [row.x, row.y]), low = Math.min(0, ...values) - 0.03, high = Math.max(0.1, ...values) + 0.03;
      for (const range of [scatter.x_range, scatter.y_range]) range.setv({ start: low, end: high });
      scatter.below.find((part) => "axis_label" in part).axis_label = x;
      scatter.left.find((part) => "axis_label" in part).axis_label = y;
      const link = (arm, at) => (P.links[arm][at] ? { value: "map", href: P.links[arm][at] } : "");
      const columns = [{ title: "protein", text: true, long: true }, { title: x, digits: 3 }, { title: y, digits: 3 }, { title: "difference", digits: 3, hint: `${y} less ${x}` },
        { title: "map", text: true, hint: x }, { title: "map", text: true, hint: y }];
      const cells = rows.map((row) => [row.id, row.x, row.y, row.y - row.x, link(x, row.at), link(y, row.at)]);
      const pick = (index) => { source.selected.indices = [index]; };
      table = page.table(by("pairs"), { columns, rows: cells, pick, caption: "Proteins" });
      table.sort(3, true);
      table.search(by("find-protein").value);
      const count = (better) => rows.filter(better).length;
      by("wins").value = `${x} wins ${count((row) => row.x > row.y)}, ${y} wins ${count((row) => row.y > row.x)}, of ${rows.length} proteins`;
    };
    source.selected.change.connect(() => { if (source.selected.indices.length && table) table.select(source.selected.indices[0]); });
    for (const id of ["arm-x", "arm-y", "score"]) by(id).addEventListener("change", draw);
    by("find-protein").addEventListener("input", () => table.search(by("find-protein").value));
    draw();
    self.contactlm = { source, scatter, figures };
  } else self.contactlm = { figures };
  requestAnimationFrame(() => requestAnimationFrame(() => page.ready()));
})().catch(page.fail);
