"use strict";
// Parts that every page is made of. Text only ever enters as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) element.append(child);
  }
  return element;
}

const adapters = new Map((data.adapters || []).map((one, i) => [one.name, { ...one, i }]));

function colour(name) {
  const one = adapters.get(name);
  return one ? `--who: var(--c${one.i % 8})` : "";
}

function who(name) {
  return make("span", { class: "who", style: colour(name) }, name);
}

// A sentence in which `name` in backticks stands in that adapter's colour.
function sentence(text) {
  return text.split("`").map((part, i) => {
    if (i % 2 === 0) return part;
    return adapters.has(part) ? who(part) : make("code", {}, part);
  });
}

function count(number) {
  return Number(number).toLocaleString("en");
}

function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (number >= 1024 && unit < 3) { number /= 1024; unit += 1; }
  return `${unit ? number.toFixed(number < 10 ? 1 : 0) : number} ${units[unit]}`;
}

function several(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

function section(title, ...children) {
  return make("section", {}, make("h2", {}, title), ...children);
}

function places(addresses) {
  return make("ul", {}, addresses.map((one) => make("li", {}, make("code", {}, one))));
}

const WORDS = {
  commute: "commute", ordered: "ordered", user: "your order",
  conflict: "conflict", undecided: "needs your word",
};

function verdict(one) {
  return make("div", { class: "why" },
    who(one.a), " and ", who(one.b), " ",
    make("span", { class: `badge ${one.word}` }, WORDS[one.word] || one.word), " ",
    ...sentence(one.reason),
    one.at?.length ? make("details", { class: "soft" },
      make("summary", {}, "where they meet"), places(one.at)) : null);
}

const theme = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
function shine(name) { document.documentElement.dataset.theme = name; }
shine(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => shine(dark.matches ? "dark" : "light"));
theme.addEventListener("click", () => {
  shine(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
});
