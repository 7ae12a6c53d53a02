// Read server-sent events from a response's body. EventSource cannot be used: it sends only GET requests.

// The server sends a comment every 15 seconds: after a longer silence, as of a computer that slept, the connection is
// gone.
const SILENCE_MS = 45_000;

/** Yield the `data` of each event, in order. Event names are ignored, since each object has its own `type`. */
export async function* eventData(body) {
  const data = [];
  for await (const line of lines(body)) {
    if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    else if (line === "" && data.length) yield data.splice(0).join("\n");
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  // A line may be megabytes of base64 in many chunks, which are joined only once, at the end of the line.
  let parts = [];
  try {
    for (;;) {
      const { done, value } = await heard(reader);
      if (done) return;
      const [first, ...rest] = value.split("\n");
      parts.push(first);
      for (const next of rest) {
        yield parts.join("").replace(/\r$/, "");
        parts = [next];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Return what a reader reads next. Raises an Error after a long silence. */
async function heard(reader) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("silence")), SILENCE_MS);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } finally {
    clearTimeout(timer);
  }
}
