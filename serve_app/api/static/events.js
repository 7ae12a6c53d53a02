// Server-sent events out of a response's body. EventSource cannot: it only ever sends GET.

/** The `data` of each event, in order. Names are not read: every object of ours carries its own `type`. */
export async function* eventData(body) {
  const data = [];
  for await (const line of lines(body)) {
    if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    else if (line === "" && data.length) yield data.splice(0).join("\n");
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  // A line is megabytes of base64 that come in many chunks: they are joined once, when its end is there.
  let parts = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const [first, ...rest] = value.split("\n");
    parts.push(first);
    for (const next of rest) {
      yield parts.join("").replace(/\r$/, "");
      parts = [next];
    }
  }
}
