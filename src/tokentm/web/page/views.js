// The four views. Each reads `state` and draws; none of them computes relevance.
const $ = (id) => element.querySelector("#" + id);
const percent = (value) => (value >= 0.9995 ? "> 99.9 %" : value < 0.001 ? "< 0.1 %" : `${(100 * value).toFixed(1)} %`);

const drawClasses = () => {
  const list = $("classes"), focused = list.contains(document.activeElement) && document.activeElement.dataset.index;
  list.innerHTML = state.classes.map((one) => `<li><button type="button" data-index="${one.index}" aria-pressed="${
    one.index === state.answer.target}"><i style="width:${(100 * one.probability).toFixed(2)}%"></i><b>${escaped(one.name)}</b><span>${
    percent(one.probability)}</span></button></li>`).join("");
  if (focused) list.querySelector(`[data-index="${focused}"]`)?.focus();
};

const shownMap = () => {
  const { map, blocks } = state.answer, block = Number($("block").value) - 1;
  if (!blocks || block === 0) return map;
  const [, rows, columns] = blocks.shape, packed = state.blocks;
  const relevance = Array.from({ length: rows }, (_, y) => Array.from({ length: columns }, (_, x) => packed.at(block, y, x)));
  return { relevance, low: blocks.low[block], high: blocks.high[block], signed: false, highest: blocks.highest[block] };
};

const drawMap = () => {
  if (!state.answer || !state.pixels) return;
  const map = shownMap(), { answer } = state;
  paint($("map"), state.pixels, map, state.bare ? { ...state.look, opacity: 0 } : state.look);
  if (state.painted !== state.pixels) paint($("photo"), state.painted = state.pixels, map, { ...state.look, opacity: 0 });
  $("photo").setAttribute("aria-label", `The photo ${state.name}, as the model sees it`);
  const block = Number($("block").value), from = block > 1 ? `, from block ${block} on` : "";
  $("map").setAttribute("aria-label", `Relevance of ${answer.method} for ${answer.class}${from}: highest in the ${map.highest}`);
  $("caption").textContent = `${answer.method} for ${answer.class}, ${percent(answer.probability)}${from}. Highest in the ${map.highest}.` +
    (answer.class_specific ? "" : " This method is blind to the class.");
  $("block-said").textContent = block;
  drawLegend();
};

// The colours of the maps in view; none where nothing is coloured, or where maps of both kinds stand side by side.
const drawLegend = () => {
  const maps = state.view === "compare" ? (state.compared ? state.compared.rows.flatMap((row) => row.maps) : [])
    : state.view === "faith" || !state.answer ? [] : [state.view === "tokens" ? { signed: false } : shownMap()];
  const signed = maps.length > 0 && maps[0].signed;
  $("looks").hidden = maps.length === 0;
  $("legend").hidden = maps.some((map) => map.signed !== signed);
  $("bare").hidden = state.view !== "explain";
  $("low").textContent = signed ? "against" : "low";
  $("high").textContent = signed ? "for" : "high";
  paintRamp($("ramp"), state.look, signed);
};

const drawCompared = () => {
  const found = state.compared;
  if (!found) return;
  $("compared").innerHTML = found.rows.map((row, r) => `<h3>${escaped(row.class)}, ${percent(row.probability)}</h3><div class="cells"><figure><canvas role="img" class="seen" aria-label="The photo"></canvas><figcaption>the photo</figcaption></figure>${
    row.maps.map((map, m) => `<figure><canvas role="img" data-row="${r}" data-map="${m}" aria-label="Relevance of ${escaped(map.method)} for ${
      escaped(row.class)}: highest in the ${map.highest}"></canvas><figcaption><b>${escaped(map.method)}</b>${
      map.class_specific ? "" : " · blind to the class"}</figcaption></figure>`).join("")}</div>`).join("");
  paintCompared();
};

const paintCompared = () => {
  const { rows } = state.compared;
  element.querySelectorAll("#compared .seen").forEach((canvas) => paint(canvas, state.pixels, rows[0].maps[0], { ...state.look, opacity: 0 }));
  element.querySelectorAll("#compared [data-map]").forEach((canvas) => paint(canvas, state.pixels, rows[canvas.dataset.row].maps[canvas.dataset.map], state.look));
  drawLegend();
};

const drawMeasured = () => {
  const found = state.measured;
  if (!found) return;
  const xs = found.fractions.map((f) => `${Math.round(100 * f)} %`);
  const columns = found.fractions.map((_, i) => found.random.map((order) => order[i]));
  const band = { low: columns.map((c) => Math.min(...c)), high: columns.map((c) => Math.max(...c)) };
  const lines = (field) => found.curves.map((curve, i) => ({ name: curve.method, values: curve[field], colour: COLOURS[i % 8], dash: DASHES[i % 8] }));
  const common = { xs, low: 0, high: 1, percent: true, band, xTitle: "pixels taken away", W: 460, H: 210 };
  $("measured").innerHTML = `<div class="charts wide">${
    chart({ ...common, title: `Most relevant first: probability of ${found.class}`, lines: lines("most_first") })}${
    chart({ ...common, title: `Least relevant first: probability of ${found.class}`, lines: lines("least_first") })}</div>${
    key([...lines("most_first"), { name: "grey: range of random orders", colour: "#8f99a3" }])}<ul class="verdicts">${
    found.curves.map((curve, i) => `<li style="--c:${COLOURS[i % 8]}"><b>${escaped(curve.method)}</b>: ${escaped(curve.verdict)}</li>`).join("")}</ul>
    <details><summary>Numbers</summary><div class="scroll"><table><tr><th>method</th><th>order</th>${xs.map((x) => `<th>${x}</th>`).join("")}<th>mean</th></tr>${
    found.curves.map((curve) => ["most_first", "least_first"].map((field) => `<tr><td>${escaped(curve.method)}</td><td>${field.replace("_", " ")}</td>${
      curve[field].map((value) => `<td>${percent(value)}</td>`).join("")}<td>${percent(field === "most_first" ? curve.area_most : curve.area_least)}</td></tr>`).join("")).join("")}</table></div></details>`;
};

// A method stands under its own rule; where it composes with others, it may be added under each of them.
const chip = (name, summary, slow, on) => `<label title="${escaped(summary)}"><input type="checkbox" value="${name}" ${on ? "checked" : ""}>${name}${slow ? " (slow)" : ""}</label>`;

const chips = (id, chosen) => {
  $(id).innerHTML = setup.methods.map((method) => chip(method.name, method.summary, method.probe, chosen.includes(method.name))).join("");
  const composing = setup.methods.filter((method) => method.composes);
  under(id, "method").innerHTML = composing.map((method) => `<option>${method.name}</option>`).join("");
  under(id, "rule").innerHTML = setup.rules.filter((rule) => rule.name !== "plain").map((rule) => `<option title="${escaped(rule.summary)}">${rule.name}</option>`).join("");
  under(id, "method").value = "tokentm";
  under(id, "rule").value = "libra";
};
const under = (id, part) => element.querySelector(`[data-under="${part}"][data-for="${id}"]`);
const boxOf = (id, name) => element.querySelector(`#${id} input[value="${name}"]`);

const addUnderRule = (id) => {
  const method = methodOf(under(id, "method").value), rule = under(id, "rule").value, name = `${method.name}/${rule}`;
  if (boxOf(id, name)) boxOf(id, name).checked = true;
  else {
    const others = [...element.querySelectorAll(`#${id} input`)].filter((box) => box.value.split("/")[0] === method.name);
    others.at(-1).closest("label").insertAdjacentHTML("afterend", chip(name, `${method.summary}; backward rule ${rule}`, method.probe, true));
  }
  tell(`${name} is chosen.`);
};
const checked = (id) => [...element.querySelectorAll(`#${id} :checked`)].map((box) => box.value);
