// The four views. Each reads `state` and draws; none of them computes relevance.
const $ = (id) => element.querySelector("#" + id);
const percent = (value) => (value >= 0.9995 || value < 0.0005 ? `${(100 * value).toFixed(0)} %` : `${(100 * value).toFixed(1)} %`);

const drawClasses = () => {
  const list = $("classes"), focused = list.contains(document.activeElement) && document.activeElement.dataset.index;
  list.innerHTML = state.answer.classes.map((one) => `<li><button type="button" data-index="${one.index}" aria-pressed="${
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
  paint($("map"), state.pixels, map, state.look);
  const block = Number($("block").value), from = block > 1 ? `, from block ${block} on` : "";
  $("map").setAttribute("aria-label", `Relevance of ${answer.method} for ${answer.class}${from}: highest in the ${map.highest}`);
  $("caption").textContent = `${answer.method} for ${answer.class}, ${percent(answer.probability)}${from}. Highest in the ${map.highest}.` +
    (answer.class_specific ? "" : " This method is blind to the class.");
  $("block-said").textContent = block;
  const signed = map.signed;
  $("low").textContent = signed ? "against" : "low";
  $("high").textContent = signed ? "for" : "high";
  paintRamp($("ramp"), state.look, signed);
};

const drawCompared = () => {
  const found = state.compared;
  if (!found) return;
  $("compared").innerHTML = found.rows.map((row, r) => `<h3>${escaped(row.class)}, ${percent(row.probability)}</h3><div class="cells">${
    row.maps.map((map, m) => `<figure><canvas role="img" data-row="${r}" data-map="${m}" aria-label="Relevance of ${escaped(map.method)} for ${
      escaped(row.class)}: highest in the ${map.highest}"></canvas><figcaption><b>${escaped(map.method)}</b>${
      map.class_specific ? "" : " · blind to the class"}</figcaption></figure>`).join("")}</div>`).join("");
  paintCompared();
};

const paintCompared = () => element.querySelectorAll("#compared canvas").forEach((canvas) => {
  paint(canvas, state.pixels, state.compared.rows[canvas.dataset.row].maps[canvas.dataset.map], state.look);
});

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

const chips = (id, chosen) => {
  $(id).innerHTML = setup.methods.map((method) => `<label title="${escaped(method.summary)}${method.probe ? " (slow)" : ""}"><input type="checkbox" value="${
    method.name}" ${chosen.includes(method.name) ? "checked" : ""}>${method.name}${method.probe ? " (slow)" : ""}</label>`).join("");
};
const checked = (id) => [...element.querySelectorAll(`#${id} :checked`)].map((box) => box.value);
