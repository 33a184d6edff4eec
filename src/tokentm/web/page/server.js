// Questions to the server, through the same named endpoints that every other client uses.
const ask = async (name, question) => {
  const base = new URL("gradio_api/call/v2/" + name, document.baseURI);
  const posted = await fetch(base, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question),
  }).catch(() => { throw new Error("The server does not answer; is it still running?"); });
  if (!posted.ok) throw new Error(await refusal(posted));
  const { event_id: id } = await posted.json();
  const text = await (await fetch(base + "/" + id)).text();
  const last = text.trim().split("\n\n").map(eventOf).filter((one) => one.event === "complete" || one.event === "error").pop();
  if (!last) throw new Error("The server ended the connection before it had an answer; try again.");
  if (last.event === "error") throw new Error((last.data && last.data.error) || last.data || "The server could not answer.");
  return last.data[0];
};

const refusal = async (response) => {
  const text = await response.text();
  if (response.status === 503) return "Too many requests are waiting; try again in a minute.";
  try { const said = JSON.parse(text).detail; return typeof said === "string" ? said : "The server refused the request."; }
  catch { return text.slice(0, 300) || `The server refused the request (${response.status}).`; }
};

const eventOf = (block) => {
  const found = {};
  for (const line of block.split("\n")) {
    const at = line.indexOf(": ");
    if (at > 0) found[line.slice(0, at)] = line.slice(at + 2);
  }
  return { event: found.event, data: found.data ? JSON.parse(found.data) : null };
};

const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

// {dtype, shape, base64} -> values and a way to reach them by index.
const arrayOf = (packed) => {
  const values = new Float32Array(bytesOf(packed.base64).buffer);
  return { shape: packed.shape, values, at: (...index) => values[index.reduce((sum, i, axis) => sum * packed.shape[axis] + i, 0)] };
};

const dataUrlOf = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error("The file cannot be read; choose another one."));
  reader.readAsDataURL(blob);
});

const save = (name, bytes, type) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
