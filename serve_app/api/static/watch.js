// The events of a job, by a stream or by asking from time to time.

import { jobEvents, jobProgress } from "./api.js";
import { pause } from "./pause.js";

// Browsers make six connections to one server, for all their tabs together.
const MOST_STREAMS = 3;
const ASK_MS = 2000;

let streams = 0;

/**
 * Yield the events of a job until it has succeeded. A tab that nobody sees, and a tab that follows many edits, asks for
 * the progress alone, so that a connection is free for the next edit. Raises ApiError.
 */
export async function* watchJob(id, key, signal) {
  for (;;) {
    if (document.hidden || streams >= MOST_STREAMS) {
      const progress = await jobProgress(id, key, signal);
      if (!progress) return;
      yield progress;
      await pause(ASK_MS, signal);
    } else if (yield* streamWhileSeen(id, key, signal)) return;
    signal.throwIfAborted();
  }
}

/** Yield the events of a job's stream; return whether it has come to its end, and not to that of its being seen. */
async function* streamWhileSeen(id, key, signal) {
  const over = new AbortController();
  const end = () => over.abort();
  const endIfHidden = () => document.hidden && end();
  signal.addEventListener("abort", end);
  document.addEventListener("visibilitychange", endIfHidden);
  streams += 1;
  try {
    yield* jobEvents(id, key, over.signal);
    return true;
  } catch (error) {
    if (!over.signal.aborted) throw error;
    return false;
  } finally {
    streams -= 1;
    signal.removeEventListener("abort", end);
    document.removeEventListener("visibilitychange", endIfHidden);
  }
}
