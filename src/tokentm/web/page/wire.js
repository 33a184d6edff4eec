// Fill the page once and listen.
const fill = () => {
  $("model").innerHTML = setup.models.map((name) => `<option>${escaped(name)}</option>`).join("") + (setup.anyModel ? `<option value="*">another…</option>` : "");
  $("method").innerHTML = setup.methods.map((method) => `<option>${method.name}</option>`).join("");
  $("method").value = "tokentm";
  $("rule").innerHTML = setup.rules.map((rule) => `<option title="${escaped(rule.summary)}">${rule.name}</option>`).join("");
  $("rule").value = "plain";
  const group = (label, names) => `<optgroup label="${label}">${Object.keys(names).map((name) => `<option>${name}</option>`).join("")}</optgroup>`;
  $("colours").innerHTML = group("one-sided maps", sequential) + group("signed maps", diverging);
  drawExamples();
  chips("compare-methods", ["tokentm", "gae", "rollout"]);
  chips("faith-methods", ["tokentm", "gae", "rollout"]);
};

const wireSources = () => {
  $("file").addEventListener("change", async (event) => { await chooseFile(event.target.files[0]); event.target.value = ""; });
  $("examples").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) choosePhoto(button.dataset.photo, button.title);
  });
  const drop = $("drop");
  for (const kind of ["dragover", "dragenter"]) element.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  element.addEventListener("dragleave", () => drop.classList.remove("over"));
  element.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); chooseFile(event.dataTransfer.files[0]); });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files || [])].find((one) => one.type.startsWith("image/"));
    if (file) { event.preventDefault(); chooseFile(file); }
  });
};

const wireCamera = () => {
  let stream = null;
  const close = () => { stream?.getTracks().forEach((track) => track.stop()); stream = null; $("camera").hidden = true; };
  $("webcam").addEventListener("click", async () => {
    complain("");
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      $("video").srcObject = stream;
      $("camera").hidden = false;
      await $("video").play();
    } catch { close(); complain("No camera can be used here; it needs one, your permission, and a page from this machine or over https."); }
  });
  $("unshoot").addEventListener("click", close);
  $("shoot").addEventListener("click", () => {
    const video = $("video"), canvas = document.createElement("canvas");
    canvas.width = video.videoWidth; canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => { close(); chooseFile(new File([blob], "webcam.png", { type: "image/png" })); }, "image/png");
  });
};

const wireChoices = () => {
  const again = () => { if (state.source) explain(state.answer ? state.answer.target : null); };
  const modelChanged = async () => {
    const model = modelName();
    await work("Loading the model…", async () => { await learnExamples(); return " "; });
    if (model !== modelName() || !state.source) return;
    const shown = examplesHere();
    if (state.source.startsWith("example:") && !shown.some((one) => one.photo === state.source)) choosePhoto(shown[0].photo, shown[0].alt);
    else explain();
  };
  $("model").addEventListener("change", () => {
    $("named").hidden = $("model").value !== "*";
    state.photo = null; // another model sees another crop
    state.classes = [];
    if ($("model").value === "*") drawExamples(); else modelChanged();
  });
  $("name").addEventListener("change", () => { state.photo = null; state.classes = []; if (modelName()) modelChanged(); });
  $("method").addEventListener("change", () => { methodChanged(); again(); });
  $("rule").addEventListener("change", () => { state.tokens = null; again(); });
  $("classes").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) explain(Number(button.dataset.index));
  });
  for (const id of ["opacity", "colours"]) { $(id).addEventListener("input", lookChanged); $(id).addEventListener("change", () => state.answer && remember()); }
  $("block").addEventListener("input", drawMap);
  $("cancel").addEventListener("click", cancelJobs);
  $("bare").addEventListener("click", () => { state.bare = !state.bare; $("bare").setAttribute("aria-pressed", state.bare); drawMap(); });
  element.querySelectorAll("[data-under=add]").forEach((button) => button.addEventListener("click", () => addUnderRule(button.dataset.for)));
};

const wireViews = () => {
  const tabs = [...element.querySelectorAll("[role=tab]")];
  const open = (tab) => work("Opening…", async () => { await show(tab.id.slice(4)); if (state.answer) remember(); return " "; });
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = tabs[(to + tabs.length) % tabs.length];
      next.focus();
      open(next);
    });
  });
  $("compare-go").addEventListener("click", () => work("Comparing…", async () => {
    const classes = () => [...new Set([$("compare-one").value, $("compare-two").value].filter((value) => value !== "").map(Number))];
    const found = await ofThisPhoto("compare", () => ({ targets: classes(), methods: checked("compare-methods") }));
    if (!found) return "";
    state.compared = found;
    drawCompared();
    return `Compared in ${state.compared.seconds.toFixed(2)} s.`;
  }));
  $("faith-go").addEventListener("click", () => work("Taking pixels away…", async () => {
    const target = () => (state.answer ? state.answer.target : null);
    const found = await ofThisPhoto("faithfulness", () => ({ target: target(), methods: checked("faith-methods") }));
    if (!found) return "";
    state.measured = found;
    drawMeasured();
    return `Measured in ${state.measured.seconds.toFixed(2)} s.`;
  }));
};

const wireExports = () => {
  element.querySelectorAll("#downloads [data-kind]").forEach((button) => button.addEventListener("click", () => saveFile(button.dataset.kind)));
  $("settings").addEventListener("click", () => save("tokentm-settings.json", JSON.stringify(settings(), null, 2) + "\n", "application/json"));
  $("load").addEventListener("change", async (event) => {
    try { await apply(JSON.parse(await event.target.files[0].text())); } catch { complain("This file holds no settings of this page."); }
    event.target.value = "";
  });
  $("link").addEventListener("click", async () => {
    remember();
    try { await navigator.clipboard.writeText(location.href); tell("The link is copied; it opens this view again (the photo itself only if it is an example)."); }
    catch { tell("The link is in the address bar."); }
  });
  const dark = () => document.body.classList.contains("dark");
  const label = () => { $("theme").textContent = dark() ? "Light" : "Dark"; $("theme").setAttribute("aria-pressed", dark()); };
  $("theme").addEventListener("click", () => { document.body.classList.toggle("dark"); label(); });
  label();
};

fill();
methodChanged();
lookChanged();
wireSources();
wireCamera();
wireChoices();
wireAsking();
wireViews();
wireExports();
watchPatches();
apply(Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
