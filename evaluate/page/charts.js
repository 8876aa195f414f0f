// Charts as SVG of one size, which scale with their column.

const WIDE = 360, HIGH = 190, LEFT = 34, RIGHT = 8, TOP = 8, BOTTOM = 34;
const acrossChart = (share) => LEFT + share * (WIDE - LEFT - RIGHT);
const downChart = (share) => HIGH - BOTTOM - share * (HIGH - TOP - BOTTOM);

function chart(label, parts, xTexts, yTexts, xTitle) {
  return svg("svg", { class: "chart", viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": label },
    yTexts.map(([share, text]) => [
      svg("line", { class: "axis", x1: LEFT, x2: WIDE - RIGHT, y1: downChart(share), y2: downChart(share) }),
      svg("text", { x: LEFT - 5, y: downChart(share) + 4, "text-anchor": "end" }, text),
    ]),
    parts,
    xTexts.map(([share, text]) =>
      svg("text", { x: acrossChart(share), y: HIGH - BOTTOM + 14, "text-anchor": "middle" }, text)),
    svg("text", { x: acrossChart(0.5), y: HIGH - 4, "text-anchor": "middle" }, xTitle));
}

// Histograms over the same parts, side by side. Series: {name, counts, class}.
function histogram(title, series, low, high, xTitle, note, marks) {
  const bins = series[0].counts.length, most = Math.max(1, ...series.flatMap((one) => one.counts));
  const wide = (WIDE - LEFT - RIGHT) / bins, each = (wide - 1) / series.length;
  const bars = series.map((one, s) => one.counts.map((count, n) => count > 0 && svg("rect", {
    class: one.class, x: LEFT + n * wide + s * each + 0.5, y: downChart(count / most), width: Math.max(0.5, each),
    height: HIGH - BOTTOM - downChart(count / most),
  }, svg("title", null, `${one.name}: ${count} of ${(low + (n * (high - low)) / bins).toFixed(2)} to ${
    (low + ((n + 1) * (high - low)) / bins).toFixed(2)}`))));
  const shown = marks ?? [0, 0.25, 0.5, 0.75, 1].map((share) => low + share * (high - low));
  const texts = shown.map((value) => [(value - low) / (high - low), String(+value.toFixed(2))]);
  return titled(title, chart(title, bars, texts, [[0, "0"], [1, String(most)]], xTitle),
    series.length > 1 && names(series), note);
}

// Shares over 0..1 as lines. Series: {name, points [[x, y]], class}.
function lines(title, series, xTitle, note, diagonal, mark) {
  const drawn = series.map((one) => [
    svg("polyline", { class: one.class, points: one.points.map(([x, y]) => `${acrossChart(x)},${downChart(y)}`).join(" ") }),
    one.dots && one.points.map(([x, y, text]) => svg("circle", { class: one.dots, cx: acrossChart(x), cy: downChart(y), r: 3.5 },
      svg("title", null, text))),
  ]);
  const extra = [
    diagonal && svg("line", { class: "dash", x1: acrossChart(0), y1: downChart(0), x2: acrossChart(1), y2: downChart(1) }),
    mark !== undefined && svg("line", { class: "mark", x1: acrossChart(mark), x2: acrossChart(mark), y1: downChart(0), y2: downChart(1) }),
  ];
  const fifths = [0, 0.2, 0.4, 0.6, 0.8, 1];
  return titled(title, chart(title, [extra, drawn], fifths.map((x) => [x, String(x)]),
    [0, 0.25, 0.5, 0.75, 1].map((y) => [y, `${100 * y}`]), xTitle), series.length > 1 && names(series), note);
}

// Rows of parts that add up. Rows: {name, parts [[label, value, class]]}.
function stacked(title, rows, unit, note) {
  const most = Math.max(...rows.map((row) => row.parts.reduce((sum, [, value]) => sum + value, 0))) || 1;
  const high = 34 * rows.length + 6;
  const drawn = rows.map((row, n) => {
    let at = 70;
    const total = row.parts.reduce((sum, [, value]) => sum + value, 0), scale = (WIDE - 70 - 66) / most;
    const bars = row.parts.map(([label, value, kind]) => {
      const bar = svg("rect", { class: kind, x: at, y: 34 * n + 5, width: Math.max(0, value * scale), height: 22 },
        svg("title", null, `${label}: ${+value.toFixed(3)} ${unit}`));
      at += value * scale;
      return bar;
    });
    return [svg("text", { x: 64, y: 34 * n + 20, "text-anchor": "end" }, row.name), bars,
      svg("text", { x: at + 5, y: 34 * n + 20 }, `${+total.toFixed(total < 100 ? 1 : 0)} ${unit}`)];
  });
  const keys = rows[0].parts.map(([name, , kind]) => ({ name, class: kind }));
  return titled(title, svg("svg", { class: "chart", viewBox: `0 0 ${WIDE} ${high}`, role: "img", "aria-label": title }, drawn),
    names(keys), note);
}

function titled(title, ...parts) {
  const note = parts.pop();
  return el("div", null, el("h3", null, title), parts, note && el("p", { class: "note" }, note));
}

function names(series) {
  return el("p", { class: "legend" }, series.map((one) => el("span", null,
    svg("svg", { class: "chart", width: 14, height: 10, viewBox: "0 0 14 10" },
      svg("rect", { class: one.dots ?? one.class, width: 12, height: 10, rx: 2 })), ` ${one.name}`)));
}
