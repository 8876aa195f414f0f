// Pictures with their boxes: rule, cut, filters, one picture at a time; and what begins it all.

const PAGE = 24;
const state = { rule: 0, cut: null, label: "", kind: "", sort: "worst", heat: false, other: true, count: PAGE };
const cards = [];
let listed = [], opened = -1, figures, controls;

const rule = () => REPORT.rules[state.rule];
const found = (picture, network = 0) => picture.found[network][state.rule];
const boxOf = (picture) => (state.cut === null ? found(picture).box : cutBox(picture, rule(), state.cut));
const iouOf = (picture) => (state.cut === null ? found(picture).iou : bestIou(picture, cutBox(picture, rule(), state.cut)));

const ORDERS = {
  worst: ["worst box first", (a, b) => found(a).iou - found(b).iou],
  best: ["best box first", (a, b) => found(b).iou - found(a).iou],
  apart: ["precisions most apart first", (a, b) => a.agreement[state.rule] - b.agreement[state.rule]],
  sure: ["surest wrong class first", (a, b) => (a.predicted[0] === a.label) - (b.predicted[0] === b.label) || b.scores[0] - a.scores[0]],
  set: ["order of the set", () => 0],
};

function frame(picture) {
  const own = svg("rect", { class: "own" }), other = svg("rect", { class: "other" }), canvas = el("canvas", { width: COLUMNS, height: ROWS });
  const place = (rect, [x0, y0, x1, y1]) => {
    for (const [name, value] of [["x", x0], ["y", y0], ["width", x1 - x0], ["height", y1 - y0]]) rect.setAttribute(name, value.toFixed(1));
    return rect;
  };
  const element = el("div", { class: "frame" }, el("img", { src: picture.thumb, alt: "", decoding: "async" }), canvas,
    svg("svg", { viewBox: `0 0 ${picture.width} ${picture.height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      picture.truth.map((box) => place(svg("rect", { class: "truth" }), box)), other, own));
  element.style.aspectRatio = `${picture.width} / ${picture.height}`;
  element.style.width = `min(100%, var(--high) * ${picture.width / picture.height})`;
  return { element, update() {
    place(own, boxOf(picture)).setAttribute("class", state.cut === null ? "own" : "own cut");
    const shown = state.other && picture.found.length > 1 && state.cut === null;
    other.style.display = shown ? "" : "none";
    if (shown) place(other, found(picture, 1).box);
    canvas.style.display = state.heat ? "" : "none";
    if (state.heat) paint(canvas, picture);
  } };
}

// The map in colours from blue over green to red; what lies under the cut is left clear.
function paint(canvas, picture) {
  const map = mapOf(picture, rule()), context = canvas.getContext("2d"), image = context.createImageData(COLUMNS, ROWS);
  const above = bound(map, rule(), state.cut ?? ownCut(picture, rule(), found(picture)));
  map.cells.forEach((value, n) => {
    const share = value / 255;
    image.data[4 * n] = 255 * Math.min(1, Math.max(0, 2 * share - 0.6));
    image.data[4 * n + 1] = 255 * (1 - Math.abs(2 * share - 1));
    image.data[4 * n + 2] = 255 * Math.min(1, Math.max(0, 1.2 - 2 * share));
    image.data[4 * n + 3] = value > above ? 255 : 70;
  });
  context.putImageData(image, 0, 0);
}

function card(picture) {
  const drawn = frame(picture), iou = el("span"), kind = el("span");
  const name = REPORT.classes[picture.label], taken = picture.predicted[0] !== picture.label && REPORT.classes[picture.predicted[0]];
  const element = el("button", { class: "card", type: "button", title: picture.name, onclick: () => open(listed.indexOf(picture)) },
    el("div", { class: "stage" }, drawn.element, kind),
    el("div", { class: "words" }, el("b", null, breakable(name)), el("br"), iou, taken && `taken for ${breakable(taken)} `, percent(picture.scores[0], 0)));
  return { element, picture, update() {
    drawn.update();
    kind.className = `kind ${REPORT.kinds[found(picture).kind]}`;
    kind.textContent = kindName(found(picture).kind);
    iou.textContent = `IoU ${fixed(iouOf(picture), 2)}${state.cut === null ? "" : " (cut)"}, `;
  } };
}

function list() {
  listed = REPORT.pictures.filter((picture) => (state.label === "" || picture.label === +state.label)
    && (state.kind === "" || found(picture).kind === +state.kind));
  listed = [...listed].sort(ORDERS[state.sort][1]);
  cards.splice(0, cards.length, ...listed.slice(0, state.count).map(card));
  controls.cards.replaceChildren(...cards.map((one) => one.element));
  controls.more.hidden = listed.length <= state.count;
  controls.more.textContent = `Show ${Math.min(PAGE, listed.length - state.count)} more of ${listed.length}`;
  controls.empty.hidden = listed.length > 0;
  draw();
}

// Boxes of every picture on the page at the present cut, and what the cut comes to.
function draw() {
  cards.forEach((one) => one.update());
  if (opened >= 0) open(opened);
  const right = listed.filter((picture) => iouOf(picture) >= 0.5).length;
  const share = listed.length ? percent(right / listed.length) : "none";
  controls.live.textContent = state.cut === null
    ? `The rule's own boxes, from the kernel: ${right} of ${listed.length} listed pictures right (${share}).`
    : `Cut at ${state.cut.toFixed(2)} of ${readsScores(rule()) ? "each picture's range of scores" : "the map's maximum"}: ${right} of ${
      listed.length} listed pictures right (${share}). Approximate, from stored maps of ${COLUMNS} x ${ROWS} cells${
      rule().kind === "foreground+colour" ? ", without colours" : ""}; chosen by looking at true boxes, it is tuned on them.`;
}

function setRule(number) {
  state.rule = (number + REPORT.rules.length) % REPORT.rules.length;
  controls.rules.forEach((button, n) => button.setAttribute("aria-pressed", n === state.rule));
  setCut(null, false);
  figures.update(state.rule);
  list();
  setTimeout(sweep, 30);
}

function setCut(cut, redraw = true) {
  state.cut = cut === null ? null : Math.min(1, Math.max(0, cut));
  const own = REPORT.pictures.map((picture) => ownCut(picture, rule(), found(picture)));
  const shown = state.cut ?? own.reduce((sum, value) => sum + value, 0) / own.length;
  controls.slider.value = shown;
  controls.output.textContent = state.cut === null ? `rule` : shown.toFixed(2);
  if (redraw) draw();
}

// The share that is right at every cut, in slices, so that the page answers meanwhile.
function sweep() {
  const current = rule(), points = [];
  const step = () => {
    if (rule() !== current) return;
    for (const end = performance.now() + 12; points.length <= 50 && performance.now() < end; ) {
      const cut = points.length / 50;
      const right = REPORT.pictures.filter((picture) => bestIou(picture, cutBox(picture, current, cut)) >= 0.5).length;
      points.push([cut, right / REPORT.pictures.length]);
    }
    if (points.length <= 50) return void setTimeout(step, 4);
    const best = points.reduce((a, b) => (b[1] > a[1] ? b : a));
    controls.sweep.replaceChildren(lines("Right boxes over the cut", [{ points, class: "la" }], "cut of the stored maps",
      `Per cent of the ${REPORT.pictures.length} shown pictures. The best single cut, ${best[0].toFixed(2)} with ${percent(best[1])}, is tuned on these true boxes; the rule reaches ${
        percent(REPORT.pictures.filter((picture) => found(picture).iou >= 0.5).length / REPORT.pictures.length)} without them.`));
  };
  step();
}

function open(number) {
  const dialog = document.getElementById("detail");
  if (number < 0 || number >= listed.length) return;
  opened = number;
  const picture = listed[number], drawn = frame(picture), focused = document.activeElement?.title;
  const move = (by) => () => open((opened + by + listed.length) % listed.length);
  dialog.replaceChildren(
    el("div", { class: "top" },
      el("div", null, el("h3", null, breakable(REPORT.classes[picture.label])), el("p", { class: "note" }, `${breakable(picture.name)}, ${picture.width} x ${picture.height}`)),
      el("div", { class: "buttons" },
        el("button", { type: "button", title: "The one before (left)", onclick: move(-1) }, "\u2190"),
        el("button", { type: "button", title: "The next (right)", onclick: move(1) }, "\u2192"),
        el("button", { type: "button", title: "Close (Esc)", onclick: () => dialog.close() }, "\u2715"))),
    el("div", { class: "stage" }, drawn.element),
    el("p", null, `Taken for ${REPORT.networks.map((name, n) => `${REPORT.classes[picture.predicted[n]]} with ${percent(picture.scores[n])} (${name})`).join(", ")}. `,
      state.cut !== null && `Cut at ${state.cut.toFixed(2)}: IoU ${fixed(iouOf(picture), 2)}, approximate.`),
    table([
      { name: "rule", of: ([one]) => ruleName(one) },
      { name: "kind", of: ([, n]) => kindName(picture.found[0][n].kind) },
      { name: "IoU", of: ([, n]) => picture.found[0][n].iou, show: (v) => fixed(v), number: true },
      { name: "threshold", of: ([one, n]) => fixed(ownCut(picture, one, picture.found[0][n]), 2), number: true },
      ...(picture.agreement ? [
        { name: `IoU, ${REPORT.networks[1]}`, of: ([, n]) => picture.found[1][n].iou, show: (v) => fixed(v), number: true },
        { name: "IoU of the two", of: ([, n]) => picture.agreement[n], show: (v) => fixed(v), number: true },
      ] : []),
    ], REPORT.rules.map((one, n) => [one, n])));
  if (!dialog.open) dialog.showModal();
  for (const button of dialog.querySelectorAll("button")) if (button.title && button.title === focused) button.focus();
  drawn.update();
}

function pictureSection() {
  const pick = (key, options) => el("select", { onchange: (event) => { state[key] = event.target.value; state.count = PAGE; list(); } },
    options.map(([value, text]) => el("option", { value }, text)));
  const tick = (key, text) => el("label", { class: "tick" }, el("input", { type: "checkbox", checked: state[key], id: key,
    onchange: (event) => { state[key] = event.target.checked; draw(); } }), text);
  controls = {
    rules: REPORT.rules.map((one, n) => el("button", { type: "button", onclick: () => setRule(n) }, ruleName(one))),
    slider: el("input", { type: "range", min: 0, max: 1, step: 0.01, id: "cut", oninput: (event) => setCut(+event.target.value) }),
    output: el("output", { for: "cut" }), live: el("p", { class: "live note", role: "status" }), cards: el("div", { class: "cards" }),
    more: el("button", { class: "more", type: "button", onclick: () => { state.count += PAGE; list(); } }),
    empty: el("p", { class: "note" }, "No picture of this class and kind."), sweep: el("div", { class: "block sweep" }),
  };
  const orders = Object.entries(ORDERS).filter(([key]) => key !== "apart" || REPORT.comparison).map(([key, [text]]) => [key, text]);
  section("pictures", "Pictures",
    el("div", { class: "bar controls" },
      el("label", null, "rule", el("div", { class: "switch", role: "group", "aria-label": "Rule" }, controls.rules)),
      el("label", null, "class", pick("label", [["", "all"], ...REPORT.classes.map((name, n) => [n, name])])),
      el("label", null, "kind", pick("kind", [["", "all"], ...REPORT.kinds.map((_, n) => [n, kindName(n)])])),
      el("label", null, "order", pick("sort", orders)),
      tick("heat", "map"), REPORT.comparison && tick("other", `${REPORT.networks[1]} boxes`)),
    el("p", { class: "legend" }, el("span", null, el("i", { class: "truth" }), "true box"),
      el("span", null, el("i", { class: "own" }), `${REPORT.networks[0]}, the label's class`),
      REPORT.comparison && el("span", null, el("i", { class: "other" }), `${REPORT.networks[1]}, the same`)),
    el("div", { class: "cutter" }, el("label", { for: "cut", class: "note" }, "threshold, cut live from the stored maps"),
      el("div", { class: "line" }, controls.slider, controls.output,
        el("button", { type: "button", title: "Back to the rule's own boxes (0)", onclick: () => setCut(null) }, "as the rule")),
      controls.live),
    controls.cards, controls.empty, controls.more, controls.sweep,
    el("p", { class: "keys note" }, [["r", "next rule"], ["[ ]", "cut lower, higher"], ["0", "as the rule"], ["m", "map"], ["i", "boxes of the other precision"],
      ["d", "dark or light"], ["\u2190 \u2192", "pictures, one opened"]].map(([key, text]) => el("span", null, el("kbd", null, key), ` ${text}`))));
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input:not([type=range], [type=checkbox])")) return;
  const toggle = (key) => { state[key] = !state[key]; const box = document.getElementById(key); if (box) box.checked = state[key]; draw(); };
  const actions = { d: theme };
  if (REPORT) {
    Object.assign(actions, { r: () => setRule(state.rule + 1), 0: () => setCut(null), m: () => toggle("heat"), i: () => toggle("other"),
      "[": () => setCut(+controls.slider.value - 0.01), "]": () => setCut(+controls.slider.value + 0.01) });
    if (opened >= 0) Object.assign(actions, { ArrowLeft: () => open((opened + listed.length - 1) % listed.length), ArrowRight: () => open((opened + 1) % listed.length) });
  }
  if (!actions[event.key] || (event.target.type === "range" && event.key.startsWith("Arrow"))) return;
  event.preventDefault();
  actions[event.key]();
}

function theme() {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
}

function begin() {
  if (matchMedia("(prefers-color-scheme: dark)").matches) document.documentElement.dataset.theme = "dark";
  document.getElementById("theme").addEventListener("click", theme);
  document.addEventListener("keydown", keys);
  document.getElementById("detail").addEventListener("close", () => { opened = -1; });
  document.querySelector("h1").textContent = document.title;
  const { model } = DATA.bundle;
  document.querySelector(".about").textContent = REPORT
    ? `${REPORT.images} images of split ${REPORT.provenance.split}, ${model.classes.length} classes, ${REPORT.networks.join(" and ")}, written ${REPORT.provenance.written}`
    : `${model.architecture.name}, ${model.classes.length} classes`;
  if (REPORT) {
    figures = figureSections();
    figures.glance();
    pictureSection();
    figures.rest();
    setRule(0);
    provenance();
  }
  bundleSections();
}

begin();
