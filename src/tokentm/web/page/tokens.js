// One patch through depth: what TokenTM made of it, block by block.
const gridOf = () => [state.tokens.map.relevance.length, state.tokens.map.relevance[0].length];
const tokenOf = (patch) => state.tokens.prefix + patch;

const loadTokens = (answer) => {
  const arrays = {};
  for (const [name, value] of Object.entries(answer)) if (value && value.base64) arrays[name] = arrayOf(value);
  state.tokens = { ...answer, arrays };
  state.pinned = null;
  const { relevance } = answer.map, flat = relevance.flat();
  state.ranked = flat.map((_, i) => i).sort((a, b) => flat[b] - flat[a]);
  drawBlocks();
  drawTokens(state.ranked[0]);
};

const drawPatches = (patch) => {
  if (!state.tokens) return;
  const canvas = $("patches"), [rows, columns] = gridOf();
  paint(canvas, state.pixels, state.tokens.map, state.look);
  const context = canvas.getContext("2d"), w = canvas.width / columns, h = canvas.height / rows;
  context.strokeStyle = "#ffffff55";
  for (let x = 1; x < columns; x++) context.strokeRect(x * w, -1, 0, canvas.height + 2);
  for (let y = 1; y < rows; y++) context.strokeRect(-1, y * h, canvas.width + 2, 0);
  const x = (patch % columns) * w, y = Math.floor(patch / columns) * h;
  context.lineWidth = Math.max(2, canvas.width / 120);
  context.strokeStyle = "#000000";
  context.strokeRect(x, y, w, h);
  context.lineWidth /= 2;
  context.strokeStyle = "#ffffff";
  context.strokeRect(x, y, w, h);
};

const drawTokens = (patch) => {
  const { arrays, map, class: name } = state.tokens, [rows, columns] = gridOf(), token = tokenOf(patch);
  state.patch = patch;
  drawPatches(patch);
  const row = Math.floor(patch / columns), column = patch % columns, value = map.relevance[row][column];
  const place = state.ranked.indexOf(patch) + 1, count = rows * columns;
  $("token-title").textContent = `Row ${row + 1}, column ${column + 1}`;
  $("token-said").textContent = `Relevance ${value.toPrecision(3)} for ${name}: place ${place} of ${count}. ${strongestHead(token)}`;
  const blocks = arrays.ffn_ratio.shape[0], each = (array) => Array.from({ length: blocks }, (_, l) => array.at(l, token));
  const xs = Array.from({ length: blocks }, (_, l) => l + 1);
  const length = Array.from({ length: blocks + 1 }, (_, l) => arrays.length.at(l, token));
  const attention = { colour: COLOURS[0], dash: "", name: "attention, mean of heads" }, ffn = { colour: COLOURS[1], dash: "7 3", name: "feed-forward" };
  const pair = (a, f) => [{ ...attention, values: each(arrays[a]) }, { ...ffn, values: each(arrays[f]) }];
  const top = (lines) => Math.max(...lines.flatMap((line) => line.values));
  const ratios = pair("attention_ratio", "ffn_ratio"), weights = pair("attention_weight", "ffn_weight");
  $("token-charts").innerHTML = key([attention, ffn]) + `<div class="charts">${
    chart({ title: "Token length", lines: [{ name: "length", values: length, colour: COLOURS[2] }],
      xs: [...xs, "out"], low: 0, high: Math.max(...length), xTitle: "block" })}${
    chart({ title: "Change of length", lines: ratios, xs, low: 0, high: top(ratios), xTitle: "block" })}${
    chart({ title: "Direction kept (cosine)", lines: pair("attention_cosine", "ffn_cosine"), xs, low: -1, high: 1, xTitle: "block" })}${
    chart({ title: "Transformation weight", lines: weights, xs, low: 0, high: top(weights), xTitle: "block" })}</div>` + headTable(token);
  markBlocks(row, column);
};

const carriedBy = (token) => {
  const { carried } = state.tokens.arrays, [blocks, heads] = carried.shape, found = [];
  for (let l = 0; l < blocks; l++) for (let h = 0; h < heads; h++) found.push({ l, h, value: carried.at(l, h, token) });
  return found;
};

const strongestHead = (token) => {
  const best = carriedBy(token).reduce((a, b) => (b.value > a.value ? b : a));
  return best.value > 0 ? `Most of it left through head ${best.h + 1} of block ${best.l + 1}.` : "No head carried it.";
};

const headTable = (token) => {
  const found = carriedBy(token), whole = state.tokens.arrays.relevance.at(token) || 1, most = Math.max(...found.map((one) => one.value));
  const [blocks, heads] = state.tokens.arrays.carried.shape, table = state.look.sequential;
  const cell = ({ value }) => {
    const at = 3 * step(most > 0 ? value / most : 0), colour = [table[at], table[at + 1], table[at + 2]];
    const ink = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140 ? "#000" : "#fff";
    const share = (100 * value) / whole;
    return `<td style="background:rgb(${colour});color:${ink}">${share >= 0.5 ? share.toFixed(0) : ""}</td>`;
  };
  const head = Array.from({ length: heads }, (_, h) => `<th scope="col">${h + 1}</th>`).join("");
  const rows = Array.from({ length: blocks }, (_, l) => `<tr><th scope="row">block ${l + 1}</th>${found.slice(l * heads, (l + 1) * heads).map(cell).join("")}</tr>`).join("");
  return `<h3>Which heads carried it, % of its relevance</h3><div class="scroll" tabindex="0" role="region" aria-label="Heads"><table class="heat"><tr><th>head</th>${head}</tr>${rows}</table></div>`;
};

const drawBlocks = () => {
  const { arrays, prefix } = state.tokens, blocks = arrays.ffn_weight.shape[0];
  const strip = (name, title) => `<h3>${title}</h3><div class="small">${Array.from({ length: blocks }, (_, l) =>
    `<figure><div><canvas role="img" aria-label="${title}, block ${l + 1}" data-array="${name}" data-block="${l}"></canvas><i class="cell"></i></div><figcaption>block ${l + 1}</figcaption></figure>`).join("")}</div>`;
  $("token-blocks").innerHTML = strip("attention_weight", "Transformation weight of every patch, attention (mean of heads)") +
    strip("ffn_weight", "Transformation weight of every patch, feed-forward") +
    `<p class="soft">Each small picture has its own colours, from its least to its greatest weight${prefix ? "; tokens without a patch are left out" : ""}.</p>`;
  paintBlocks();
};

const paintBlocks = () => {
  if (!state.tokens) return;
  const [rows, columns] = gridOf();
  element.querySelectorAll("#token-blocks canvas").forEach((canvas) => {
    const array = state.tokens.arrays[canvas.dataset.array], block = Number(canvas.dataset.block);
    const cells = Array.from({ length: rows }, (_, y) => Array.from({ length: columns }, (_, x) => array.at(block, tokenOf(y * columns + x))));
    const flat = cells.flat();
    paintCells(canvas, cells, Math.min(...flat), Math.max(...flat), state.look.sequential);
  });
};

const markBlocks = (row, column) => {
  const [rows, columns] = gridOf();
  element.querySelectorAll("#token-blocks .cell").forEach((mark) => {
    mark.style.cssText = `left:${(100 * column) / columns}%;top:${(100 * row) / rows}%;width:${100 / columns}%;height:${100 / rows}%`;
  });
};

const patchAt = (event) => {
  const box = $("patches").getBoundingClientRect(), [rows, columns] = gridOf();
  const x = Math.floor(((event.clientX - box.left) / box.width) * columns), y = Math.floor(((event.clientY - box.top) / box.height) * rows);
  return Math.min(rows - 1, Math.max(0, y)) * columns + Math.min(columns - 1, Math.max(0, x));
};

const watchPatches = () => {
  const canvas = $("patches");
  canvas.addEventListener("pointermove", (event) => {
    if (!state.tokens || state.pinned !== null || event.pointerType === "touch") return;
    const patch = patchAt(event);
    if (patch !== state.patch) drawTokens(patch);
  });
  canvas.addEventListener("click", (event) => {
    if (!state.tokens) return;
    const patch = patchAt(event);
    state.pinned = state.pinned === patch ? null : patch;
    drawTokens(patch);
  });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }, move = moves[event.key];
    if (!state.tokens || !move) return;
    event.preventDefault();
    const [rows, columns] = gridOf(), row = Math.floor(state.patch / columns) + move[0], column = (state.patch % columns) + move[1];
    if (row < 0 || column < 0 || row >= rows || column >= columns) return;
    state.pinned = row * columns + column;
    drawTokens(state.pinned);
  });
};
