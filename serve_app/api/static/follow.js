// Follow an edit. It runs as a job of the server, which goes on while no page follows it.

import { createJob, deleteJob, jobOutputs } from "./api.js";
import { pause } from "./pause.js";
import { watchJob } from "./watch.js";

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 15_000;

/**
 * Start an edit, unless it has a job, and yield its events until its outputs are done, as many as `outputs`. `signal`:
 * cancels the edit. `started`: called with the id of the job; `lost`: called whenever the connection is lost, before it
 * is tried again. Raises ApiError.
 */
export async function* follow(edit, outputs, key, signal, { started, lost }) {
  // The signal does not end the upload: if it did, nobody would know whether it has become a job.
  const creating = edit.job ? Promise.resolve(edit.job) : create(edit, key, signal);
  signal.addEventListener("abort", () => creating.then((id) => deleteJob(id, key.value)).catch(() => {}));
  const job = await Promise.race([creating, aborted(signal)]);
  if (!edit.job) started(job);
  const done = new Set();
  for await (const event of unbroken(() => watchJob(job, key.value, signal), key, signal, lost)) {
    if (event.type === "image_edit.completed") done.add(`${event.input_index} ${event.variant_index}`);
    yield event;
  }
  // Some time after its end a job has no events any more, nor for a tab that has only asked for its progress.
  if (done.size < outputs) yield* unbroken(() => jobOutputs(job, key.value, signal), key, signal, lost);
}

async function create(edit, key, signal) {
  if (key.isMissing) await key.changed(signal);
  signal.throwIfAborted();
  return createJob(edit, key.value);
}

/** Delete the job of an edit that has ended. If the server is away, the job ends by its age. */
export function forgetJob({ job }, key) {
  if (job) deleteJob(job, key.value).catch(() => {});
}

/** Yield what `read` yields; read again where the connection is lost, or the key is missing. */
async function* unbroken(read, key, signal, lost) {
  let pause_ms = FIRST_PAUSE_MS;
  for (;;) {
    try {
      if (key.isMissing) await key.changed(signal);
      for await (const event of read()) {
        pause_ms = FIRST_PAUSE_MS;
        yield event;
      }
      return;
    } catch (error) {
      signal.throwIfAborted();
      if (error.status === 401) {
        key.complain(error);
        await key.changed(signal);
      } else if (error.isPassing) {
        lost();
        await pause(pause_ms, signal);
        pause_ms = Math.min(2 * pause_ms, LONGEST_PAUSE_MS);
      } else throw error;
    }
    signal.throwIfAborted();
  }
}

function aborted(signal) {
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
}
