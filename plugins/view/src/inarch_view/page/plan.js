// The page of a plan: members, a matrix of every pair, and the proof.

const order = data.order;
const between = new Map();
for (const one of order.verdicts) {
  between.set(`${one.a} ${one.b}`, one);
  between.set(`${one.b} ${one.a}`, one);
}
const MARKS = { commute: "=", ordered: "<", user: "<", conflict: "✗", undecided: "?" };
const detail = make("aside", { id: "panel", "aria-live": "polite" },
  make("p", { class: "soft" }, "Choose a pair for its reason."));

function cell(row, column) {
  if (row === column) return make("td", { class: "soft" }, "·");
  const one = between.get(`${row} ${column}`);
  if (!one) return make("td", {}, "");
  const first = one.a === row;
  const mark = MARKS[one.word] === "<" && !first ? ">" : MARKS[one.word];
  return make("td", {}, make("button", {
    type: "button", class: one.word, title: `${row} and ${column}: ${WORDS[one.word]}`,
    onclick: () => detail.replaceChildren(verdict(one)),
  }, `${mark} ${WORDS[one.word]}`));
}

function matrix() {
  const names = order.names;
  if (names.length < 2) return make("p", { class: "soft" }, "One adapter meets nobody.");
  return make("div", { class: "scroll" }, make("table", { class: "matrix", id: "matrix" },
    make("thead", {}, make("tr", {}, make("th", {}, ""), names.map((n) => make("th", {}, who(n))))),
    make("tbody", {}, names.map((row) => make("tr", {},
      make("th", {}, who(row)), names.map((column) => cell(row, column)))))));
}

function members() {
  const head = ["turn", "name", "adapter", "scale", "parameters", "edits", "new inputs"];
  const turn = (name) => order.layers.findIndex((layer) => layer.includes(name)) + 1;
  const rows = data.adapters.map((one) => make("tr", {},
    make("td", { class: "n" }, String(turn(one.name))), make("td", {}, who(one.name)),
    make("td", {}, one.kind), make("td", { class: "n" }, String(one.scale)),
    make("td", { class: "n" }, count(one.parameters)),
    make("td", {}, Object.entries(one.edits).map(([kind, n]) => `${count(n)} ${kind}`).join(", ")),
    make("td", {}, make("code", {}, one.inputs.join(", ")))));
  return make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, head.map((h) => make("th", {}, h)))), make("tbody", {}, rows)));
}

function proof() {
  if (!data.proof) return make("p", { class: "soft" }, "Not asked for.");
  const { runs, needed, free, device, unproved } = data.proof;
  const lines = runs.map((run) => make("li", {},
    run.tree ? [make("code", {}, run.tree), ": "] : [], make("code", {}, run.outputs.join(", ")),
    ` out, ${count(run.operations - run.operations_before)} operations more than ${count(run.operations_before)}`));
  return make("div", {}, make("ul", {}, lines, unproved.map((text) => make("li", {}, `not proved: ${text}`))),
    make("p", {}, `${bytes(needed)} needed on ${device}`, free === null ? "" : `, ${bytes(free)} free`));
}

document.getElementById("summary").textContent =
  `${data.model.family}, ${several(order.names.length, "adapter")}, inarch ${data.version}`;
main.append(
  make("div", { class: "wide" }, section("Members, in canonical order", members())),
  make("div", {}, section("Pairs", matrix()),
    section("Proof", proof()),
    make("p", { class: "soft" }, "digest ", make("code", {}, order.digest))),
  detail);
