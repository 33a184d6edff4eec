// Questions under way: how far each is, and a way to end them.
const PATIENCE = 700; // milliseconds before progress is asked for, and between two times
const jobs = [];
const isCancelled = (error) => error.cancelled === true;
const cancelled = () => Object.assign(new Error("Cancelled."), { cancelled: true });
const ticketOf = () => Array.from(crypto.getRandomValues(new Uint8Array(18)), (byte) => byte.toString(16).padStart(2, "0")).join("");

const tellProgress = ({ state: now, doing, part, parts, share, seconds }) => {
  $("cancel").hidden = false;
  $("progress").hidden = now === "waiting";
  if (now === "waiting") return tell("Waiting in the queue: the server answers others first.", true);
  const counted = parts > 1 && part > 0, through = share === null || share === undefined ? "" : `, ${Math.round(100 * share)} %`;
  if (part > 0) $("progress").value = (part - 1 + (share || 0)) / parts; else $("progress").removeAttribute("value");
  return tell(`Computing ${doing}${through}${counted ? ` (${part} of ${parts})` : ""}, ${Math.round(seconds)} s so far.`, true);
};

const followJob = async (job) => {
  for (;;) {
    await new Promise((resolve) => { setTimeout(resolve, PATIENCE); });
    if (!jobs.includes(job)) return;
    const told = await ask("progress", { ticket: job.ticket }).catch(() => null); // a full queue answers nothing; ask again
    if (told && job === jobs.at(-1)) tellProgress(told);
  }
};

// Ask with a ticket; while the answer is not there, say how far it is.
const askWatched = async (name, question) => {
  const job = { name, ticket: ticketOf(), since: performance.now() };
  const ended = new Promise((_, reject) => { job.end = () => reject(cancelled()); });
  jobs.push(job);
  followJob(job);
  try {
    return await Promise.race([ask(name, { ...question, ticket: job.ticket }), ended]);
  } catch (error) {
    throw job.ending ? cancelled() : error; // the question may hear of it before the wish is answered
  } finally {
    jobs.splice(jobs.indexOf(job), 1);
    if (!jobs.length) { $("cancel").hidden = true; $("progress").hidden = true; $("progress").removeAttribute("value"); }
  }
};

// What nobody waits for any more need not be computed to its end; what is nearly there may be.
const dropJobs = (name) => jobs.filter((job) => job.name === name && performance.now() - job.since > PATIENCE).forEach((job) => {
  job.ending = true;
  ask("cancel", { ticket: job.ticket }).catch(() => null);
  job.end();
});

// End what is under way. The page is free once the server knows; that a full queue turned the wish away is said.
const cancelJobs = async () => {
  const ending = [...jobs];
  ending.forEach((job) => { job.ending = true; });
  tell("Cancelling…", true);
  try {
    await Promise.all(ending.map((job) => ask("cancel", { ticket: job.ticket })));
    ending.forEach((job) => job.end());
  } catch (error) {
    ending.forEach((job) => { job.ending = false; });
    complain(error.message);
  }
};
