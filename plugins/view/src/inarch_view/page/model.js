// The page of a model: adapters, order, inputs, and the tree with its sources.

const VERBS = {
  add: "adds to what the site gives", scale: "multiplies what the site gives",
  before: "changes what comes in", after: "changes what goes out",
  wrap: "stands around the site", replace: "stands in its place",
  provide: "provides a named value", tap: "names what the site gives",
  read: "read the base here when it was made",
};
const DID = {
  add: "adds", scale: "scales", before: "changes the input", after: "changes the output",
  wrap: "wraps", replace: "replaces", provide: "provides values", tap: "taps",
};

// Adapters

function adapterRow(one) {
  const did = Object.entries(one.edits).map(([kind, n]) => `${DID[kind]} at ${several(n, "site")}`);
  const button = make("button", {
    type: "button", class: "who", style: colour(one.name), "aria-pressed": "false",
    title: "Show only what it touched", onclick: () => light(one.name),
  }, one.name);
  button.dataset.adapter = one.name;
  return make("tr", {},
    make("td", {}, button),
    make("td", {}, one.kind, one.state === "live" ? null : make("span", { class: "badge" }, one.state)),
    make("td", { class: "n" }, String(one.scale)),
    make("td", {}, did.join(", "),
      one.roles.length ? make("div", { class: "soft" }, one.roles.join(", ")) : null,
      one.reads ? make("div", { class: "soft" }, "reads ", make("code", {}, one.reads)) : null),
    make("td", { class: "n" }, count(one.parameters)),
    make("td", { class: "n" }, bytes(one.bytes)),
    make("td", { class: "n" }, one.operations === null ? "–" : count(one.operations)));
}

function adaptersSection() {
  if (!adapters.size) return section("Adapters", make("p", { class: "soft" }, "None: this is the base."));
  const head = ["name", "kind", "scale", "what it does, and where", "parameters", "size", "added operations"];
  return section("Adapters", make("div", { class: "scroll" }, make("table", { id: "adapters" },
    make("thead", {}, make("tr", {}, head.map((h) => make("th", {}, h)))),
    make("tbody", {}, data.adapters.map(adapterRow)))));
}

function orderSection() {
  const order = data.order;
  if (!order || order.names.length < 2) return null;
  const layers = order.layers.map((layer) => make("li", {},
    layer.flatMap((name, i) => [i ? " · " : null, who(name)]),
    layer.length > 1 ? make("span", { class: "soft" }, "  in any order") : null));
  return section("Order, and why", make("ol", { class: "order" }, layers),
    make("div", { id: "verdicts" }, order.verdicts.map(verdict)),
    make("p", { class: "soft" }, "Any way to write this stack down gives digest ",
      make("code", {}, order.digest.slice(0, 32)), "."));
}

function inputsSection() {
  const rows = data.inputs.map((one) => {
    const button = make("button", { type: "button", title: "Show where it flows",
      onclick: () => flow(one.name) }, make("code", {}, one.name));
    return make("tr", {}, make("td", {}, button, one.new ? make("span", { class: "badge" }, "new") : null),
      make("td", {}, make("code", { class: "soft" }, one.asked || "the main input")));
  });
  return section("Inputs", make("div", { class: "scroll" },
    make("table", { id: "inputs" }, make("tbody", {}, rows))));
}

// The tree: a list item is made when the line above it is opened

const items = new Map(); // list item -> its line, address and tree
const panel = make("aside", { id: "panel", "aria-live": "polite" });
let selected = null;

function joined(a, b) { return a && b ? `${a}.${b}` : a || b; }

function item(line, around, tree, names) {
  const chain = line.source >= 0;
  const folded = names.length > 1;
  const named = folded ? `${names.join("|")}` : names[0] ?? line.name;
  const address = line.name ? joined(around, named) : "";
  const inside = chain && line.name ? address : around;
  const element = make("li", { role: "treeitem", tabindex: "-1", "aria-selected": "false" });
  const row = make("div", { class: "row" });
  if (line.by) { row.classList.add("by"); row.style = colour(line.by); }
  const label = folded ? `(${names[0]}-${names[names.length - 1]})` : line.folded ? names[0] : line.label;
  row.append(make("span", { class: "twist", "aria-hidden": "true" }, line.below ? "▸" : ""),
    ...(label ? [make("span", { class: "label" }, label)] : []),
    make("span", { class: "text" }, line.text));
  if (folded) {
    row.append(make("button", { type: "button", class: "times", tabindex: "-1",
      title: "Show them one by one",
      onclick: (event) => { event.stopPropagation(); unfold(element); } }, `x${names.length}`));
  }
  const did = [...new Set((line.marks || []).map((m) => m.adapter))];
  if (did.length && !line.by) {
    row.append(make("span", { class: "dots" }, did.map((name) =>
      make("span", { class: "dot", style: colour(name), title: name }))));
  }
  element.append(row);
  if (line.below) element.setAttribute("aria-expanded", "false");
  const touched = [line.by, ...did].filter(Boolean);
  items.set(element, { line, address, inside, tree, around, names, touched });
  row.addEventListener("click", (event) => {
    select(element);
    if (event.target.classList.contains("twist")) toggle(element); else open(element);
  });
  return element;
}

function open(element) {
  const { line, inside, tree } = items.get(element);
  if (!line.below || element.getAttribute("aria-expanded") === "true") return;
  let list = element.querySelector(":scope > ul");
  if (!list) {
    list = make("ul", { role: "group" },
      line.below.map((one) => item(one, inside, tree, one.folded || [one.name])));
    element.append(list);
    for (const one of list.children) shade(one);
  }
  list.hidden = false;
  element.setAttribute("aria-expanded", "true");
  element.querySelector(".twist").textContent = "▾";
}

function close(element) {
  if (element.getAttribute("aria-expanded") !== "true") return;
  element.querySelector(":scope > ul").hidden = true;
  element.setAttribute("aria-expanded", "false");
  element.querySelector(".twist").textContent = "▸";
}

function toggle(element) {
  if (element.getAttribute("aria-expanded") === "true") close(element); else open(element);
}

// One line for each of the equal siblings in place of the folded one.
function unfold(element) {
  const { line, around, tree, names } = items.get(element);
  if (names.length < 2) return null;
  const single = names.map((name) => item(line, around, tree, [name]));
  element.replaceWith(...single);
  items.delete(element);
  single.forEach(shade);
  if (selected === element) select(single[0], document.activeElement !== box);
  return single;
}

// What is selected

function numbers(address) {
  return address.replace(/([^.]*\|[^.]*)/g, (all) => {
    const names = all.split("|");
    return `{${names[0]}-${names[names.length - 1]}}`;
  });
}

function facts(one) {
  const { line, address, tree } = one;
  const full = joined(tree, numbers(address)) || tree || "the root";
  const parts = [make("h3", {}, make("code", {}, full))];
  parts.push(make("div", { class: "soft" }, line.text));
  const lines = [];
  if (line.roles) lines.push(["role ", make("b", {}, line.roles.join(", "))]);
  if (line.parameters) lines.push([`${several(line.parameters, "parameter")}, ${bytes(line.bytes)}`]);
  if (line.needs) lines.push(["asks for ", ...line.needs.flatMap((n, i) => [i ? ", " : "", make("code", {}, n)])]);
  if (line.names) lines.push(["binds ", make("code", {}, line.names.join(", "))]);
  for (const mark of line.marks || []) {
    lines.push([who(mark.adapter), ` ${VERBS[mark.kind]}`,
      mark.text ? make("div", { class: "mono soft" }, mark.text) : null]);
  }
  if (lines.length) parts.push(make("ul", {}, lines.map((l) => make("li", {}, l))));
  const met = meetings(one);
  if (met.length) parts.push(make("div", {}, met.map(verdict)));
  return parts;
}

// Why two adapters may stand at one site: the verdict of their pair.
function meetings({ line }) {
  const here = new Set((line.marks || []).map((m) => m.adapter));
  if (here.size < 2 || !data.order) return [];
  return data.order.verdicts.filter((v) => here.has(v.a) && here.has(v.b));
}

// A name that several adapters are computed under, `site__a__b`, has the colour of each in turn.
// It ends in an underscore where their sum may be written into what the layer gave.
function coloured(text) {
  const bold = (owner, word) => make("b", { style: colour(owner) }, word);
  return text.split(/(\w+)/).flatMap((word) => {
    const [site, ...owners] = word.split("__");
    if (!owners.length) return adapters.has(word) ? bold(word, word) : word;
    return owners.map((owner, i) => {
      const part = i ? `__${owner}` : `${site}__${owner}`;
      const known = [owner, owner.replace(/_$/, "")].find((name) => adapters.has(name));
      return known ? bold(known, part) : part;
    });
  });
}

function sourceOf(number) {
  const { lines, changed } = data.sources[number];
  const classes = { "+": "plus", "-": "minus", " ": "" };
  const signs = changed ? (sign) => `${sign} ` : () => "";
  return make("pre", { tabindex: "0", "aria-label": "generated source" }, lines.map(([sign, text]) =>
    make("span", { class: changed ? classes[sign] : "" }, signs(sign), coloured(text))));
}

function select(element, focus = true) {
  if (selected && items.has(selected)) {
    selected.setAttribute("aria-selected", "false");
    selected.tabIndex = -1;
  }
  selected = element;
  element.setAttribute("aria-selected", "true");
  element.tabIndex = 0;
  if (focus) element.focus({ preventScroll: true });
  const one = items.get(element);
  const source = one.line.source >= 0
    ? [make("div", { class: "soft" }, data.sources[one.line.source].changed
      ? "what its forward was, and is:" : "its forward, as the base has it:"), sourceOf(one.line.source)]
    : [];
  panel.replaceChildren(...facts(one), ...source);
  if (narrow.matches) element.firstChild.after(panel); else main.append(panel);
}

const narrow = matchMedia("(max-width: 900px)");
narrow.addEventListener("change", () => { if (selected) select(selected, false); });

// What is lit: one adapter's sites, or where an input flows

let lit = null;
let flowing = null;

function light(name) {
  lit = lit === name ? null : name;
  for (const button of document.querySelectorAll("button[data-adapter]")) {
    button.setAttribute("aria-pressed", String(button.dataset.adapter === lit));
  }
  for (const element of items.keys()) shade(element);
  if (lit) reveal((line) => touches(line, lit));
}

function flow(name) {
  flowing = flowing === name ? null : name;
  for (const element of items.keys()) shade(element);
  if (flowing) reveal((line) => line.needs?.includes(flowing) && !line.below?.some((l) => asks(l, flowing)));
}

function touches(line, name) {
  return line.by === name || (line.marks || []).some((m) => m.adapter === name);
}
function under(line, name) {
  return touches(line, name) || (line.below || []).some((one) => under(one, name));
}
function asks(line, name) {
  return line.needs?.includes(name) || (line.below || []).some((one) => asks(one, name));
}

function shade(element) {
  const { line } = items.get(element);
  element.classList.toggle("faded", lit !== null && !under(line, lit));
  element.firstChild.classList.toggle("flow", flowing !== null && Boolean(line.needs?.includes(flowing)));
}

// Open the way to every line that is wanted.
function reveal(wanted) {
  let first = null;
  const visit = (element) => {
    const { line } = items.get(element);
    const some = (one) => wanted(one) || (one.below || []).some(some);
    if (wanted(line)) first = first || element;
    if ((line.below || []).some(some)) {
      open(element);
      for (const child of [...element.querySelector(":scope > ul").children]) visit(child);
    }
  };
  for (const root of roots) visit(root);
  return first;
}

// Search by address or role

const status = make("span", { class: "soft", role: "status" });
const box = make("input", { type: "search", id: "search", "aria-label": "Search addresses and roles",
  placeholder: "address or role, such as q_proj or mlp.*" });

function matcher(text) {
  const wild = text.includes("*");
  const escaped = text.toLowerCase().replace(/[.+?^${}()|[\]\\]/g, "\\$&").replace(/\*/g, "[^.]*");
  return new RegExp(wild ? `(^|\\.)${escaped}($|\\.)` : escaped);
}

function search() {
  const text = box.value.trim();
  for (const row of document.querySelectorAll(".row.hit")) row.classList.remove("hit");
  status.textContent = "";
  if (!text) return;
  const found = numberedSearch(text);
  status.textContent = found.count ? several(found.count, "site") : "no site";
  if (found.first) {
    select(found.first, false);
    found.first.scrollIntoView({ block: "nearest" });
  }
}

function numberedSearch(text) {
  const match = matcher(text);
  let total = 0;
  let first = null;
  const inner = (line, around, tree) => {
    const times = line.folded ? line.folded : [line.name];
    return times.map((name) => {
      const address = line.name ? joined(around, name) : "";
      const inside = line.source >= 0 && line.name ? address : around;
      const own = (line.name && match.test(joined(tree, address).toLowerCase().split(".").slice(
        text.includes(".") ? 0 : -1).join("."))) || (line.roles || []).some((r) => match.test(r));
      const below = (line.below || []).flatMap((one) => inner(one, inside, tree));
      return { name, own, some: own || below.some((b) => b.some), below };
    });
  };
  const mark = (element, results) => {
    const { names } = items.get(element);
    const hits = results.filter((r) => names.includes(r.name) || names.length === 1);
    if (names.length > 1 && hits.some((r) => r.some !== hits[0].some || r.own !== hits[0].own)) {
      const single = unfold(element);
      single.forEach((one, i) => mark(one, [results[i]]));
      return;
    }
    const hit = hits[0];
    if (!hit) return;
    if (hit.own) {
      element.firstChild.classList.add("hit");
      first = first || element;
    }
    if (hit.below.some((b) => b.some)) {
      open(element);
      let at = 0;
      for (const child of [...element.querySelector(":scope > ul").children]) {
        const width = items.get(child).names.length;
        const siblings = items.get(child).line.folded && width === 1 ? 1 : width;
        mark(child, hit.below.slice(at, at + siblings));
        at += siblings;
      }
    }
  };
  const sum = (result) => Number(Boolean(result.own)) + result.below.reduce((n, b) => n + sum(b), 0);
  for (const root of roots) {
    const { line, tree } = items.get(root);
    const results = inner(line, "", tree);
    total += results.reduce((n, r) => n + sum(r), 0);
    if (results.some((r) => r.some)) mark(root, results);
  }
  return { count: total, first };
}

box.addEventListener("input", search);

// Keys: as trees in file managers have them

function shown() {
  return [...document.querySelectorAll(".tree li")].filter((one) => one.offsetParent !== null);
}

const KEYS = {
  ArrowDown: (list, at) => list[at + 1],
  ArrowUp: (list, at) => list[at - 1],
  Home: (list) => list[0],
  End: (list) => list[list.length - 1],
};

function pressed(event) {
  if (!selected || event.target === box || event.target.tagName === "BUTTON") return;
  const expanded = selected.getAttribute("aria-expanded");
  if (KEYS[event.key]) {
    const list = shown();
    const next = KEYS[event.key](list, list.indexOf(selected));
    if (next) { select(next); next.scrollIntoView({ block: "nearest" }); }
  } else if (event.key === "ArrowRight") {
    if (expanded === "false") open(selected);
    else if (expanded === "true") select(selected.querySelector(":scope > ul > li"));
  } else if (event.key === "ArrowLeft") {
    if (expanded === "true") close(selected);
    else select(selected.parentElement.closest("li") || selected);
  } else if (event.key === "Enter" || event.key === " ") toggle(selected);
  else if (event.key === "u") unfold(selected);
  else return;
  event.preventDefault();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && event.target !== box) { box.focus(); event.preventDefault(); }
  else if (event.key === "Escape" && event.target === box) { box.value = ""; search(); selected?.focus(); }
});

// The page

const roots = Object.entries(data.trees).map(([name, line]) => item(line, "", name, [name]));
for (const [i, name] of Object.keys(data.trees).entries()) {
  if (name) roots[i].firstChild.querySelector(".text").before(make("span", { class: "label" }, name));
}
const tree = make("div", { class: "tree", onkeydown: pressed },
  make("ul", { role: "tree", "aria-label": "the tree" }, roots));

const total = Object.values(data.trees).reduce((n, line) => n + line.parameters, 0);
document.getElementById("summary").textContent =
  `${several(total, "parameter")}, ${several(adapters.size, "adapter")}, inarch ${data.version}`;
const keys = make("p", { class: "soft" }, make("kbd", {}, "/"), " search  ", make("kbd", {}, "↑↓←→"),
  " move and fold  ", make("kbd", {}, "u"), " one by one");
const top3 = [adaptersSection(), orderSection()].filter(Boolean);
main.append(make("div", { class: "wide" }, top3),
  make("section", {}, inputsSection(), make("h2", {}, "Tree"), make("div", { id: "find" }, box, status), tree, keys));
main.append(panel);
// Open down to what adapters touched, else two levels.
const touched = (line) => Boolean(line.by) || (line.marks || []).length > 0;
if (adapters.size) reveal(touched);
else for (const root of roots) { open(root); for (const one of root.querySelectorAll("li")) open(one); }
select(roots[0], false);
