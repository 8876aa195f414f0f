// Tables and charts of a report, under the rule that is chosen.

const NAMES = { top1_cls: "Top-1 classification", gt_known_loc: "GT-known localization", top1_loc: "Top-1 localization" };
const KINDS = { right: "right", wrong_class: "wrong class", m_ins: "M-INS", part: "part", more: "more", other: "other" };
const kindName = (number) => KINDS[REPORT.kinds[number]];
const ruleName = (rule) => {
  const known = { adaptive: "paper's adaptive", foreground: "foreground", "foreground+colour": "foreground + colour" };
  const plain = rule.map === (readsScores(rule) ? "none" : "recombined");
  return `${known[rule.text] ?? rule.text}${plain ? "" : `, ${rule.map}`}`;
};

function figureSections() {
  const glance = el("div", { class: "tiles" });
  const classes = el("div"), charts = el("div", { class: "charts" }), compared = el("div");
  const parts = {
    glance: () => section("glance", "At a glance", glance, el("p", { class: "note" },
      "Intervals are Wilson's, 95 %. A box is right where its IoU with any true box is at least 0.5.")),
    rest: () => {
      section("classes", "Classes", classes);
      section("charts", "Levels, separation, scores", charts);
      if (REPORT.comparison) section("precisions", `${REPORT.networks[0]} against ${REPORT.networks[1]}`, compared);
      if (REPORT.latency) section("latency", "Latency", latency());
    },
    update: (rule) => {
      const own = REPORT.figures[0][rule];
      glance.replaceChildren(...tiles(rule));
      classes.replaceChildren(classTable(rule));
      charts.replaceChildren(...figureCharts(own));
      if (REPORT.comparison) compared.replaceChildren(comparison(rule));
    },
  };
  return parts;
}

function tiles(rule) {
  const [own, other] = REPORT.figures.map((by) => by[rule]);
  const tile = (name, value, ...more) => el("div", { class: "tile" }, el("span", null, name), el("b", null, value),
    more.map((text) => text && el("span", null, text)));
  return [
    ...Object.keys(NAMES).map((key) => tile(NAMES[key], percent(own[key]),
      `${percent(own.interval[key][0])} to ${percent(own.interval[key][1])}`,
      other && `${REPORT.networks[1]}: ${percent(other[key])}`)),
    tile("mean IoU", fixed(own.mean_iou), "of the label's box", other && `${REPORT.networks[1]}: ${fixed(other.mean_iou)}`),
    tile("images", String(REPORT.images), `${REPORT.pictures.length} shown`,
      REPORT.skipped.length > 0 && `${REPORT.skipped.length} unreadable`),
    tile("wrong", String(REPORT.images - own.kinds[0]), REPORT.kinds.slice(1).map((_, n) => `${own.kinds[n + 1]} ${kindName(n + 1)}`).join(", ")),
  ];
}

function classTable(rule) {
  const [own, other] = REPORT.figures.map((by) => by[rule].classes);
  const share = (name, key) => ({ name, of: (row) => row[key], show: (value) => percent(value), number: true });
  const columns = [
    { name: "class", of: (row) => row.name, show: breakable, wide: 9 },
    { name: "images", of: (row) => row.images, number: true },
    share("Top-1 cls.", "top1_cls"), share("GT-known", "gt_known_loc"),
    ...(other ? [{ name: `GT-known ${REPORT.networks[1]}`, of: (row) => other[own.indexOf(row)].gt_known_loc, show: (v) => percent(v), number: true }] : []),
    share("Top-1 loc.", "top1_loc"),
    { name: "mean IoU", of: (row) => row.mean_iou, show: (value) => fixed(value), number: true },
    ...REPORT.kinds.slice(1).map((_, n) => ({ name: kindName(n + 1), of: (row) => row.kinds[n + 1], number: true })),
    { name: "taken for", of: (row) => row.taken_for, show: (text) => breakable(text ?? ""), wide: 8 },
  ];
  return table(columns, own);
}

function figureCharts(own) {
  const adaptive = REPORT.figures[0][REPORT.rules.findIndex((one) => one.text === "adaptive" && one.map === "recombined")];
  const parts = own.reliability.parts.filter(Boolean);
  const dot = (what) => (part) => [part.score, part[what], `${part.images} images: score ${fixed(part.score)}, right ${fixed(part[what])}`];
  return [
    histogram("Chosen level", [{ name: "images", counts: adaptive.levels, class: "a" }], 0, 1.05, "threshold",
      "The threshold, level / 20, that the paper's adaptive rule chooses.", [0, 0.25, 0.5, 0.75, 1]),
    histogram("Separation of object and ground", REPORT.separation.map((one, n) => ({ name: `${one.map}${one.mean === null ? "" : `, mean ${fixed(one.mean, 2)}`}`,
      counts: one.counts, class: "ac"[n] })), REPORT.separation[0].low, REPORT.separation[0].high, "standard deviations",
      "Mean of the stored map within the true boxes less the mean outside, over their spread. It uses the true boxes."),
    histogram("IoU of the label's box", [{ name: "images", counts: own.ious, class: "a" }], 0, 1, "IoU", "From 0.5 a box is right."),
    lines("Reliability of scores", [
      { name: "class is right", points: parts.map(dot("class")), class: "la", dots: "a" },
      { name: "class and box are right", points: parts.map(dot("box")), class: "lb", dots: "c" },
    ], "mean score (softmax) of a tenth", `Share that is right, in per cent, of images by their score. On the dashed line scores keep their word. Expected calibration error of the class: ${fixed(own.reliability.ece)}.`, true),
  ];
}

function comparison(rule) {
  const one = REPORT.comparison[rule], [first, second] = REPORT.networks;
  return el("div", { class: "charts" },
    histogram(`IoU of ${second} boxes with ${first}'s`, [{ name: "images", counts: one.ious, class: "e" }], 0, 1, "IoU", "Boxes of the label's class."),
    terms([
      ["mean IoU", fixed(one.mean, 4)], ["5th percentile", fixed(one.p5, 4)], ["worst", fixed(one.worst, 4)],
      ["same top-1 class", percent(one.same_class)],
      ["GT-known", `${percent(REPORT.figures[0][rule].gt_known_loc)} to ${percent(REPORT.figures[1][rule].gt_known_loc)}: ${one.lost} lost, ${one.won} won`],
      ["gate", "its verdict is in the table of precisions below"],
    ]));
}

function latency() {
  const shown = [["decode", "a"], ["resize", "b"], ["forward", "c"], ["postprocess", "d"]];
  const { iterations, machine, runs } = REPORT.latency;
  return el("div", { class: "charts" },
    stacked("One image, median of each stage", runs.map((one) => ({
      name: one.precision, parts: shown.map(([stage, kind]) => [stage, one.stages[stage].p50_ms, kind]),
    })), "ms", `${runs[0].backend}, rule ${runs[0].rule}, ${iterations} iterations in turns on ${machine.cpu}, ${machine.cores} cores, kernel ${machine.kernel_target}. The machine was as busy as it was; wgap bench measures with care.`),
    table([
      { name: "stage", of: (row) => `${row.precision} ${row.stage}` },
      ...["p50", "p90", "p99", "min"].map((key) => ({ name: `${key} ms`, of: (row) => row[`${key}_ms`], show: (v) => fixed(v, 2), number: true })),
    ], runs.flatMap((one) => Object.entries(one.stages).map(([stage, times]) => ({ stage, precision: one.precision, ...times })))));
}

function provenance() {
  const about = REPORT.provenance;
  section("provenance", "Where this comes from",
    terms([
      ["data", `${about.data}, split ${about.split}, layout ${about.layout}, ${REPORT.images} images`],
      ["written", about.written], ["with", `wgap ${about.wgap}, Python ${about.python}, ${about.backend}`], ["on", about.processor],
      ["precisions", REPORT.networks.join(" and ")],
    ]),
    REPORT.skipped.length > 0 && table([{ name: "unreadable image", of: (row) => row.image, code: true }, { name: "error", of: (row) => row.error }], REPORT.skipped));
}
