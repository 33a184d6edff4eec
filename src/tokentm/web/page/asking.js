// "Ask about another class": a list of the model's classes that narrows as one types.
const MOST_MATCHES = 8;

// What can be asked of a model; fetched once for each.
const known = new Map();
const aboutModel = async (model) => {
  if (!known.has(model)) known.set(model, ask("classes", { model }).catch((error) => { known.delete(model); throw error; }));
  return known.get(model);
};

const pairsOf = (word) => new Set(Array.from({ length: Math.max(0, word.length - 1) }, (_, i) => word.slice(i, i + 2)));
const alike = (one, other) => {
  const a = pairsOf(one), b = pairsOf(other);
  return a.size && b.size ? (2 * [...a].filter((pair) => b.has(pair)).length) / (a.size + b.size) : 0;
};

// The number itself, the whole name, its beginning, the beginning of a word, anywhere in it, and then what is spelt nearly so.
const closeness = (typed, name, index) => {
  if (typed === String(index)) return 6;
  const words = name.split(/[\s,_-]+/), synonyms = name.split(",").map((part) => part.trim());
  if (synonyms.includes(typed)) return 5;
  if (name.startsWith(typed)) return 4;
  if (words.some((word) => word.startsWith(typed))) return 3;
  if (name.includes(typed)) return 2;
  return Math.max(...[...words, ...synonyms].map((part) => alike(typed, part)));
};

const matchesOf = (text, about) => {
  const typed = text.trim().toLowerCase();
  if (about.takes_text) return text.trim() ? [{ target: text.trim(), said: `“${text.trim()}”` }] : [];
  const nameOf = (index) => (about.names ? about.names[index] : `class ${index}`);
  const found = [];
  for (let index = 0; index < about.count; index++) {
    const close = typed ? closeness(typed, nameOf(index).toLowerCase(), index) : 1;
    if (close > 0.45) found.push({ target: index, said: nameOf(index), close });
  }
  return found.sort((a, b) => b.close - a.close || a.target - b.target).slice(0, MOST_MATCHES);
};

const wireAsking = () => {
  const input = $("another"), list = $("matches");
  let found = [], at = -1;
  const close = () => { list.hidden = true; at = -1; input.setAttribute("aria-expanded", false); input.removeAttribute("aria-activedescendant"); };
  const point = (to) => {
    at = to;
    [...list.children].forEach((item, i) => item.setAttribute("aria-selected", i === at));
    list.children[at]?.scrollIntoView({ block: "nearest" });
    if (at >= 0) input.setAttribute("aria-activedescendant", list.children[at].id); else input.removeAttribute("aria-activedescendant");
  };
  const open = async () => {
    if (!modelName()) return;
    let about;
    try { about = await aboutModel(modelName()); } catch (error) { complain(error.message); return; }
    if (document.activeElement !== input) return;
    found = matchesOf(input.value, about);
    list.innerHTML = found.map((one, i) => `<li role="option" id="match-${i}" aria-selected="false"><b>${escaped(one.said)}</b>${
      typeof one.target === "number" ? `<span>${one.target}</span>` : ""}</li>`).join("");
    list.hidden = found.length === 0;
    input.setAttribute("aria-expanded", found.length > 0);
    const none = input.value.trim() && !found.length;
    $("another-said").textContent = none ? `The model has no class like “${input.value.trim()}”; its classes are 0 to ${about.count - 1}.` : "";
    point(input.value.trim() && found.length ? 0 : -1);
  };
  const choose = async (one) => { input.value = ""; close(); await explain(one.target); };
  input.addEventListener("input", open);
  input.addEventListener("focus", open);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move && list.hidden) open();
    else if (move && found.length) point((at + move + found.length + (at < 0 && move < 0 ? 1 : 0)) % found.length);
    else if (event.key === "Enter" && !list.hidden && found[Math.max(at, 0)]) choose(found[Math.max(at, 0)]);
    else if (event.key === "Escape") close();
    else return;
    event.preventDefault();
  });
  list.addEventListener("pointerdown", (event) => event.preventDefault()); // the input keeps the focus
  list.addEventListener("click", (event) => {
    const item = event.target.closest("[role=option]");
    if (item) choose(found[[...list.children].indexOf(item)]);
  });
};
