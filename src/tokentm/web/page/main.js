// What is chosen, what was answered, and what happens when something is touched.
const setup = JSON.parse(props.setup);
const decoded = (tables) => Object.fromEntries(Object.entries(tables).map(([name, table]) => [name, bytesOf(table)]));
const sequential = decoded(setup.colours.sequential), diverging = decoded(setup.colours.diverging);
const state = { photo: null, source: null, name: "photo", pixels: null, answer: null, blocks: null, compared: null, tokens: null,
  measured: null, ranked: null, patch: 0, pinned: null, view: "explain", running: 0, explaining: 0, waits: null,
  classes: [], bare: false, painted: null, shown: null, fitting: {},
  look: { opacity: 0.85, sequential: Object.values(sequential)[0], diverging: Object.values(diverging)[0] } };

const methodOf = (name) => setup.methods.find((method) => method.name === name);
const methodName = () => {
  const method = methodOf($("method").value), rule = $("rule").value;
  return method.composes && rule !== method.rule ? `${method.name}/${rule}` : method.name;
};
const modelName = () => ($("model").value === "*" ? $("name").value.trim() : $("model").value);

const tell = (sentence, busy = false) => { $("status").textContent = sentence; $("status").classList.toggle("busy", busy); };
const complain = (sentence) => { $("alert").textContent = sentence; $("alert").hidden = !sentence; };

// Ask, and if the server has forgotten the photo meanwhile, send it once more.
const question = async (name, rest) => {
  const about = { model: modelName(), ...rest };
  const fresh = state.photo === null;
  try {
    return await askWatched(name, { photo: fresh ? state.source : state.photo, ...about });
  } catch (error) {
    if (fresh || !/no longer held/.test(error.message)) throw error;
    return askWatched(name, { photo: state.source, ...about });
  }
};

// What is asked of a photo's map waits until the map is there, and is dropped if another photo has taken its place.
const ofThisPhoto = async (name, rest) => {
  await state.waits;
  const source = state.source;
  const found = await question(name, rest());
  return source === state.source ? found : null;
};

const work = async (doing, act) => {
  const mine = ++state.running;
  complain("");
  tell(doing, true);
  const start = performance.now();
  try {
    const said = await act();
    if (mine === state.running) tell(said || `Done in ${((performance.now() - start) / 1000).toFixed(2)} s.`);
  } catch (error) {
    if (mine === state.running) tell(isCancelled(error) ? "Cancelled; what was there before is still shown." : "");
    if (!isCancelled(error)) complain(error.message);
  }
};

const forgetViews = () => {
  state.compared = state.tokens = state.measured = null;
  $("compared").innerHTML = $("measured").innerHTML = $("token-charts").innerHTML = $("token-blocks").innerHTML = "";
};

// The last photo, model, method or class that was asked for is what counts, whatever is touched meanwhile.
const explain = (target = null) => {
  const mine = ++state.explaining;
  const wanted = () => mine === state.explaining;
  dropJobs("explain");
  state.waits = work("Explaining…", async () => {
    try { return await explained(target, wanted); } catch (error) {
      if (!wanted()) return "";
      if (isCancelled(error)) restore();
      throw error;
    }
  });
  return state.waits;
};

// What is chosen is once more what is shown.
const restore = () => {
  if (!state.answer) return;
  const [method, rule] = state.answer.method.split("/"), { model } = state.answer;
  Object.assign(state, state.shown);
  const offered = [...$("model").options].some((option) => option.value === model);
  [$("model").value, $("name").value] = offered ? [model, ""] : ["*", model];
  $("named").hidden = offered;
  $("method").value = method;
  methodChanged();
  $("rule").value = rule || methodOf(method).rule;
  drawExamples();
};

const explained = async (target, wanted) => {
  if (!state.source) throw new Error("There is no photo yet; choose one.");
  const answer = await question("explain", { target, method: methodName() });
  if (!wanted()) return "";
  const seen = answer.seen ? pixelsOf(await imageOf(answer.seen)) : null;
  if (!wanted()) return ""; // another was asked for while the picture was decoded
  if (seen) state.pixels = seen;
  state.photo = answer.photo;
  state.shown = { source: state.source, photo: answer.photo, name: state.name };
  const changed = !state.answer || state.answer.target !== answer.target || answer.seen;
  // A class that was asked for stays in the list as long as the photo does.
  const kept = answer.seen ? [] : state.classes.filter((one) => !answer.classes.some((other) => other.index === one.index));
  state.classes = [...answer.classes, ...kept];
  state.answer = answer;
  state.blocks = answer.blocks ? arrayOf(answer.blocks) : null;
  $("layers").hidden = !answer.blocks;
  if (answer.blocks) { $("block").max = answer.blocks.shape[0]; if (answer.seen) $("block").value = 1; } else $("block").value = 1;
  drawClasses();
  drawMap();
  classChoices();
  if (changed) forgetViews();
  remember();
  await show(state.view, false);
  return `${answer.class}: explained in ${answer.seconds.toFixed(2)} s${answer.recording_reused ? ", recording reused" : ""}.`;
};

const classChoices = () => {
  const options = state.classes.map((one) => `<option value="${one.index}">${escaped(one.name)} (${percent(one.probability)})</option>`).join("");
  $("compare-one").innerHTML = options;
  $("compare-two").innerHTML = `<option value="">none</option>${options}`;
  $("compare-one").value = state.answer.target;
  $("faith-class").textContent = `for ${state.answer.class}`;
};

// Pictures like those that the model has learnt from, as far as that is known.
const examplesHere = () => {
  const fit = state.fitting[modelName()];
  const own = setup.examples.filter((one) => (fit ? fit.includes(one.photo) : one.model === modelName()));
  return own.length ? own : setup.examples.filter((one) => one.model === setup.models[0]);
};

// Of a model that did not come with the package, the server knows once it is loaded.
const learnExamples = async () => {
  const model = modelName();
  if (model && !setup.examples.some((one) => one.model === model)) state.fitting[model] = (await aboutModel(model)).examples;
  drawExamples();
};

const drawExamples = () => {
  $("examples").innerHTML = examplesHere().map((one) => `<button type="button" data-photo="${one.photo}" aria-pressed="${
    one.photo === state.source}" title="${escaped(one.alt)}"><img src="${one.picture}" alt="Example: ${escaped(one.alt)}"></button>`).join("");
};

const choosePhoto = async (source, name) => {
  Object.assign(state, { source, photo: null, name });
  element.querySelectorAll("#examples button").forEach((button) => button.setAttribute("aria-pressed", button.dataset.photo === source));
  await explain();
};

const keptPhoto = () => {
  if (state.answer && !$("alert").hidden) $("alert").textContent += " The photo before it is still the one shown.";
};

const chooseFile = async (file) => {
  if (!file) return;
  complain("");
  const refuse = (sentence) => { complain(sentence); keptPhoto(); };
  if (file.size > setup.limits.bytes) return refuse(`${file.name} is larger than the ${setup.limits.bytes >> 20} MB that are taken here.`);
  if (file.size === 0) return refuse(`${file.name} is empty (0 bytes); choose another file.`);
  const answered = state.answer;
  let source = null;
  try { source = await dataUrlOf(file); await choosePhoto(source, file.name); } catch (error) { complain(error.message); }
  // Nothing was said of it: the photo before it is still good.
  if (source !== null && state.source === source && state.answer === answered) {
    Object.assign(state, state.shown || { source: null, photo: null });
    drawExamples();
    keptPhoto();
  }
};

const show = async (view, waiting = true) => {
  state.view = view;
  for (const tab of element.querySelectorAll("[role=tab]")) {
    const chosen = tab.id === "tab-" + view;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  drawLegend();
  if (waiting) await state.waits;
  if (view === "tokens" && state.view === view && !state.tokens && state.answer) {
    const rule = methodOf($("method").value).composes ? $("rule").value : "plain";
    const mine = state.explaining;
    const found = await question("tokens", { target: state.answer.target, backward: rule });
    if (state.view === "tokens" && mine === state.explaining) loadTokens(found);
  }
};

const redraw = () => {
  drawMap();
  if (state.compared) paintCompared();
  if (state.tokens) { paintBlocks(); drawTokens(state.patch); }
};

const settings = () => ({
  model: modelName(), method: $("method").value, backward: $("rule").value, target: state.answer ? state.answer.target : null,
  photo: state.source && state.source.startsWith("example:") ? state.source : null, opacity: state.look.opacity,
  colours: $("colours").value, block: Number($("block").value), view: state.view, version: setup.version,
});

const remember = () => {
  const entries = Object.entries(settings()).filter(([, value]) => value !== null);
  history.replaceState(null, "", "#" + new URLSearchParams(entries));
};

const apply = async (given) => {
  const choose = (id, value) => { if (value && [...$(id).options].some((option) => option.value === value)) $(id).value = value; };
  if (given.model && setup.anyModel && ![...$("model").options].some((option) => option.value === given.model)) {
    [$("model").value, $("name").value] = ["*", given.model];
  }
  choose("model", given.model);
  $("named").hidden = $("model").value !== "*";
  const missing = given.model && modelName() !== given.model;
  if (missing) given = { ...given, target: null }; // its classes are not those of the model that is here
  choose("method", given.method); methodChanged(); choose("rule", given.backward); choose("colours", given.colours);
  if (given.opacity !== undefined && given.opacity >= 0 && given.opacity <= 1) $("opacity").value = given.opacity;
  lookChanged();
  if (["explain", "compare", "tokens", "faith"].includes(given.view)) state.view = given.view;
  const example = setup.examples.find((one) => one.photo === given.photo);
  try { await learnExamples(); } catch (error) { complain(error.message); }
  if (example || !state.source) { state.source = example ? example.photo : examplesHere()[0].photo; state.photo = null; }
  drawExamples();
  const index = given.target === null || given.target === undefined || given.target === "" ? NaN : Number(given.target);
  await explain(Number.isNaN(index) ? null : index);
  if (given.block && !$("layers").hidden) { $("block").value = given.block; drawMap(); }
  if (missing) complain(`The model ${given.model} is not offered here; ${modelName()} is shown instead.`);
};

const methodChanged = () => {
  const method = methodOf($("method").value);
  $("rule").disabled = !method.composes;
  if (!method.composes) $("rule").value = method.rule;
  $("summary").textContent = method.summary + (method.probe ? " (slow: runs the model many times)" : "");
};

const lookChanged = () => {
  state.look = { opacity: Number($("opacity").value), sequential: sequential[$("colours").value] || Object.values(sequential)[0],
    diverging: diverging[$("colours").value] || Object.values(diverging)[0] };
  $("opacity-said").textContent = `${Math.round(100 * state.look.opacity)} %`;
  redraw();
};

const saveFile = (suffix) => work("Saving…", async () => {
  const found = await ofThisPhoto("files", () => {
    const colours = $("colours").value, fits = state.answer && state.answer.map.signed ? colours in diverging : colours in sequential;
    return { target: state.answer ? state.answer.target : null, method: methodName(), opacity: state.look.opacity, colour_map: fits ? colours : null };
  });
  if (!found) return "";
  const [name, content] = Object.entries(found.files).find(([file]) => file.endsWith(suffix));
  save(name, bytesOf(content), { ".png": "image/png", ".json": "application/json" }[suffix] || "application/octet-stream");
  return `Saved ${name}.`;
});
