// Elements from names, attributes and children. Text becomes text, never HTML.
"use strict";

const NAMESPACE = "http://www.w3.org/2000/svg";
const DATA = JSON.parse(document.getElementById("data").textContent);

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function el(name, attributes, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return filled(document.createElementNS(NAMESPACE, name), attributes, children);
}

function section(id, title, ...children) {
  document.querySelector("nav").append(el("a", { href: `#${id}` }, title));
  const made = el("section", { id }, el("h2", null, title), ...children);
  document.querySelector("main").append(made);
  return made;
}

const percent = (share, digits = 1) => (share === null || share === undefined ? "" : `${(100 * share).toFixed(digits)} %`);
// A name that may break where a reader would break it.
const breakable = (text) => String(text).replace(/[_.\/-]/g, "$&\u200b");
const fixed = (value, digits = 3) => (value === null || value === undefined ? "" : value.toFixed(digits));

// A table whose columns sort. Columns: {name, of(row), show(value), number, code, wide}; `show` makes a cell of `of`.
function table(columns, rows, attributes) {
  const body = el("tbody");
  const fill = (list) => body.replaceChildren(...list.map((row) => el("tr", null, columns.map((column) => {
    const value = column.of(row);
    const kind = [column.number && "n", column.code && "code"].filter(Boolean).join(" ");
    const cell = el("td", kind ? { class: kind } : null, column.show ? column.show(value, row) : String(value ?? ""));
    if (column.wide) cell.style.minWidth = `${column.wide}em`;
    return cell;
  }))));
  const heads = columns.map((column) => {
    const head = el("th", { scope: "col", class: column.number ? "n" : null });
    head.append(el("button", { type: "button", onclick: () => {
      const up = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "descending" : "ascending");
      const sign = up ? -1 : 1;
      fill([...rows].sort((a, b) => {
        const [x, y] = [column.of(a), column.of(b)];
        const order = typeof x === "number" && typeof y === "number" ? x - y : String(x ?? "").localeCompare(String(y ?? ""));
        return sign * order;
      }));
    } }, column.name));
    return head;
  });
  fill(rows);
  return el("div", { class: "wide", ...attributes }, el("table", null, el("thead", null, el("tr", null, heads)), body));
}

// Pairs as a list of terms; those without a value are left out.
function terms(pairs) {
  return el("dl", null, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").map(
    ([name, value]) => [el("dt", null, name), el("dd", null, value instanceof Node ? value : String(value))]));
}
