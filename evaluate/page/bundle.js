// What the bundle is: signature, graph, precisions, files, verdicts, engines.

function bundleSections() {
  const { model, files, preprocessing, rule, operators } = DATA.bundle;
  const shape = (tensor) => `${tensor.name}: ${tensor.dtype} [${tensor.shape.join(", ")}]`;
  const parameters = Object.entries(model.architecture.parameters ?? {}).map(([name, value]) => `${name} ${value}`);
  section("bundle", "The bundle",
    terms([
      ["network", [model.architecture.name, ...parameters].join(", ")],
      ["input", model.inputs.map(shape).join("; ")],
      ["outputs", model.outputs.map(shape).join("; ")],
      ["preprocessing", `${preprocessing.name}, in the graph: channels ${preprocessing.channel_order}, scale ${
        preprocessing.scale}, mean ${preprocessing.mean.join(" ")}, std ${preprocessing.std.join(" ")}`],
      ["rule", `${rule.text}, map ${rule.map}`],
      ["classes", `${model.classes.length}: ${model.classes.slice(0, 12).join(", ")}${model.classes.length > 12 ? ", ..." : ""}`],
      ["written by", `wgap ${DATA.bundle.wgap_version}`],
    ]),
    precisions(files),
    el("div", { class: "block" }, el("h3", null, "Graph"), graph(model),
      table([
        { name: "file", of: (row) => row[0], code: true },
        { name: "operators", of: (row) => Object.entries(row[1]).sort((a, b) => b[1] - a[1]).map(([name, n]) => `${name} ${n}`).join(", "), wide: 14 },
      ], Object.entries(operators))),
    el("div", { class: "block" }, el("h3", null, "Files"), table([
      { name: "file", of: (file) => file.path, code: true },
      { name: "role", of: (file) => file.role },
      { name: "precision", of: (file) => file.precision },
      { name: "bytes", of: (file) => file.size, show: (size) => size.toLocaleString("en"), number: true },
      { name: "sha256", of: (file) => file.sha256, show: (hash) => el("span", { title: hash }, hash.slice(0, 12)), code: true },
      { name: "made from", of: madeFrom, wide: 24 },
    ], files)),
    engineTable(files.filter((file) => file.role === "engine")));
}

function madeFrom(file) {
  const tools = (record) => Object.entries(record.tools ?? {}).map(([name, version]) => `${name} ${version}`).join(", ");
  if (file.training) return `checkpoint ${file.training.checkpoint_sha256.slice(0, 12)}; ${tools(file.training)}`;
  if (file.calibration) return `${file.calibration.images} calibration images (${file.calibration.images_sha256.slice(0, 12)}); ${tools(file.calibration)}`;
  if (file.foreground) return `${file.foreground.images} pictures, labels from ${file.foreground.labels}; ${tools(file.foreground)}`;
  return file.engine ? `onnx ${file.engine.onnx_sha256.slice(0, 12)}` : "";
}

function precisions(files) {
  const models = files.filter((file) => ["onnx", "rejected"].includes(file.role));
  const verdict = (file) => {
    if (file.precision === "fp32") return el("span", null, "the reference");
    if (file.stale) return el("span", { class: "verdict refused" }, "stale: its float32 model was replaced");
    if (!file.gate) return el("span", { class: "verdict refused" }, "never judged");
    const passed = file.gate.passed && file.role === "onnx";
    return el("span", { class: `verdict ${passed ? "passed" : "refused"}` }, passed ? "passed" : "refused");
  };
  const figures = (file) => file.gate?.figures ?? {};
  const change = (pair) => (pair ? `${percent(pair.float32)} to ${percent(pair.candidate)}` : "");
  return el("div", { class: "block" }, el("h3", null, "Precisions and the gate"), table([
    { name: "precision", of: (file) => file.precision },
    { name: "gate", of: (file) => file.gate?.passed ?? "", show: (_, file) => verdict(file) },
    { name: "rule", of: (file) => (file.gate ? `${file.gate.rule.kind} ${file.gate.rule.map}` : "") },
    { name: "images", of: (file) => figures(file).images, number: true },
    { name: "mean box IoU", of: (file) => figures(file).box_iou?.mean, show: (value) => fixed(value, 4), number: true },
    { name: "top-1 agreement", of: (file) => figures(file).top1_agreement, show: (value) => percent(value), number: true },
    { name: "GT-known", of: (file) => change(figures(file).gt_known) },
    { name: "Top-1 loc.", of: (file) => change(figures(file).top1_loc) },
    { name: "reasons", of: (file) => (file.gate?.reasons ?? []).join("; ") },
    { name: "bytes", of: (file) => file.size, show: (size) => size.toLocaleString("en"), number: true },
  ], models));
}

function engineTable(engines) {
  if (!engines.length) return el("div", { class: "block" }, el("h3", null, "Engines"), el("p", { class: "note" }, "none"));
  return el("div", { class: "block" }, el("h3", null, "Engines"), table([
    { name: "file", of: (file) => file.path, code: true },
    { name: "library", of: (file) => `${file.engine.flavor} ${file.engine.version}` },
    { name: "precision", of: (file) => file.precision },
    { name: "architecture", of: (file) => file.engine.architecture },
    { name: "platform", of: (file) => file.engine.platform },
    { name: "batch", of: ({ engine: { profile } }) => `${profile.min}/${profile.opt}/${profile.max}` },
    { name: "state", of: (file) => (file.stale ? "stale, its model was replaced: build it again" : "up to date") },
  ], engines));
}

// The graph from above to below: a node lies under the last of those it reads; what lies beside it is of the same depth.
function graph(model) {
  const nodes = DATA.bundle.graph;
  if (!nodes) return el("p", { class: "note" }, "too many nodes to draw");
  const maker = new Map(model.inputs.map((tensor) => [tensor.name, { op: tensor.name, depth: 0, name: "input", out: [], in: [], end: true }]));
  const drawn = [...maker.values()], outputs = new Set(model.outputs.map((tensor) => tensor.name));
  for (const node of nodes) {
    const own = { ...node, from: node.in.map((name) => maker.get(name)).filter(Boolean) };
    own.depth = 1 + Math.max(0, ...own.from.map((one) => one.depth));
    own.end = node.out.some((name) => outputs.has(name));
    node.out.forEach((name) => maker.set(name, own));
    drawn.push(own);
  }
  const rows = [];
  for (const node of drawn) (rows[node.depth] ??= []).push(node);
  const wide = 190, high = 40, most = Math.max(...rows.map((row) => (row ? row.length : 0)));
  rows.forEach((row, depth) => row.forEach((node, n) => {
    node.x = 8 + (n + (most - row.length) / 2) * wide;
    node.y = 4 + depth * high;
  }));
  const size = [most * wide + 8, rows.length * high + 4];
  const edges = drawn.flatMap((node) => (node.from ?? []).map((one) => svg("path", {
    d: `M${one.x + 85},${one.y + 26} C${one.x + 85},${one.y + 36} ${node.x + 85},${node.y - 10} ${node.x + 85},${node.y}`,
  })));
  const boxes = drawn.map((node) => svg("g", { class: `${node.weight?.length > 1 ? "heavy" : ""} ${node.end ? "end" : ""}` },
    svg("rect", { x: node.x, y: node.y, width: 170, height: 26, rx: 5 }),
    svg("text", { x: node.x + 85, y: node.y + 17, "text-anchor": "middle" },
      `${node.op}${node.weight?.length > 1 ? ` ${node.weight.join("x")}` : ""}${node.end && node.out.length ? `: ${node.out[0]}` : ""}`),
    svg("title", null, `${node.name}\nreads ${node.in.join(", ")}\ngives ${node.out.join(", ")}`)));
  return el("div", { class: "graph", tabindex: 0, "aria-label": "Graph of the float32 network" },
    svg("svg", { width: size[0], height: size[1], viewBox: `0 0 ${size[0]} ${size[1]}` }, edges, boxes));
}
