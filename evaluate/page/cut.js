// Boxes from the stored maps: what the slider cuts. Close to the kernel's, not the same: the kernel cuts the map at the
// network's input size, and these have a few cells of eight bits.

const REPORT = DATA.report ?? null;
const [ROWS, COLUMNS] = REPORT?.grid ?? [0, 0];
const [MAP_HEIGHT, MAP_WIDTH] = DATA.bundle.model.inputs.find((tensor) => tensor.name === "image").shape.slice(1, 3);
const SEEN = new Uint8Array(ROWS * COLUMNS);
const STACK = new Int32Array(ROWS * COLUMNS);
const CELLS = new Map();

const readsScores = (rule) => rule.kind.startsWith("foreground");

// The picture's map that a rule cuts: {cells, low, high}.
function mapOf(picture, rule) {
  const map = picture.maps[readsScores(rule) ? 1 : 0];
  if (!CELLS.has(map)) CELLS.set(map, Uint8Array.from(atob(map.cells), (letter) => letter.charCodeAt(0)));
  return { cells: CELLS.get(map), low: map.low, high: map.high };
}

// The slider's place in cells' own units, 0..255: a class's map is cut at a share of 1, scores at a share of their range.
function bound(map, rule, cut) {
  if (readsScores(rule)) return 255 * cut;
  return map.high > map.low ? (255 * (cut - map.low)) / (map.high - map.low) : 0;
}

// Where a rule itself cut a picture, as the slider counts.
function ownCut(picture, rule, found) {
  if (!readsScores(rule)) return rule.kind === "adaptive" ? Math.max(0, found.level) / 20 : rule.eta;
  const { low, high } = picture.maps[1];
  return high > low ? Math.min(1, Math.max(0, -low / (high - low))) : 0;
}

// The heaviest 8-connected component above a bound: [x0, y0, x1, y1] in cells, half-open; null where there is none.
// Of a class's map the one with most cells, of scores the one with the largest sum.
function heaviest(cells, above, weighted) {
  SEEN.fill(0);
  let best = null, most = 0;
  for (let start = 0; start < cells.length; ++start) {
    if (SEEN[start] || !(cells[start] > above)) continue;
    let size = 1, weight = 0, x0 = COLUMNS, y0 = ROWS, x1 = 0, y1 = 0;
    STACK[0] = start;
    SEEN[start] = 1;
    while (size) {
      const at = STACK[--size], x = at % COLUMNS, y = (at - x) / COLUMNS;
      weight += weighted ? cells[at] - above : 1;
      if (x < x0) x0 = x;
      if (y < y0) y0 = y;
      if (x >= x1) x1 = x + 1;
      if (y >= y1) y1 = y + 1;
      for (let v = Math.max(0, y - 1); v <= Math.min(ROWS - 1, y + 1); ++v) {
        for (let u = Math.max(0, x - 1); u <= Math.min(COLUMNS - 1, x + 1); ++u) {
          const next = v * COLUMNS + u;
          if (!SEEN[next] && cells[next] > above) {
            SEEN[next] = 1;
            STACK[size++] = next;
          }
        }
      }
    }
    if (weight > most) [best, most] = [[x0, y0, x1, y1], weight];
  }
  return best;
}

// The box of a picture at a cut, in its own pixels; the whole picture where nothing is above it.
function cutBox(picture, rule, cut) {
  const map = mapOf(picture, rule);
  const found = heaviest(map.cells, bound(map, rule, cut), readsScores(rule)) ?? [0, 0, COLUMNS, ROWS];
  const across = picture.width / COLUMNS, down = picture.height / ROWS;
  return [found[0] * across, found[1] * down, found[2] * across, found[3] * down];
}

// The best IoU with a true box, as the evaluation counts: on the map, clipped to the last pixel, both ends counted.
function bestIou(picture, box) {
  const [a, ...truths] = [box, ...picture.truth].map(([x0, y0, x1, y1]) => [
    Math.max(0, (x0 * MAP_WIDTH) / picture.width), Math.max(0, (y0 * MAP_HEIGHT) / picture.height),
    Math.min(MAP_WIDTH - 1, (x1 * MAP_WIDTH) / picture.width), Math.min(MAP_HEIGHT - 1, (y1 * MAP_HEIGHT) / picture.height),
  ]);
  const area = (b) => (b[2] - b[0] + 1) * (b[3] - b[1] + 1);
  return Math.max(...truths.map((b) => {
    const across = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]) + 1);
    const shared = across * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]) + 1);
    return shared / (area(a) + area(b) - shared);
  }));
}
