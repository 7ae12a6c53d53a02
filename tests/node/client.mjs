// OpenAI's package as its users call it: node client.mjs ADDRESS PICTURE. Prints one JSON object, a member for each call.
import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import OpenAI, { toFile } from "openai";

const [address, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
const bytes = await readFile(path);
const edit = { prompt: "make the sky blue", seed: 3, num_inference_steps: 2 };

async function refusalOf(call) {
  try {
    await call;
  } catch (error) {
    const { status, code, param, requestID } = error;
    return { name: error.constructor.name, status, code, param, requestID };
  }
}

async function streamed(fields) {
  const events = [];
  for await (const event of await client.images.edit({ image: createReadStream(path), ...fields, stream: true })) {
    events.push(event);
  }
  return events;
}

async function left() {
  const long = { ...edit, num_inference_steps: 150, stream: true };
  for await (const event of await client.images.edit({ image: createReadStream(path), ...long })) {
    if (event.steps_done > 0) return event.steps_done;
  }
}

console.log(
  JSON.stringify({
    readStream: await client.images.edit({ image: createReadStream(path), ...edit, n: 2 }),
    file: await client.images.edit({ image: await toFile(bytes, "photo.png", { type: "image/png" }), ...edit }),
    listOfOne: await client.images.edit({ image: [new File([bytes], "photo.png")], ...edit }),
    references: await refusalOf(
      client.images.edit({ image: [createReadStream(path), createReadStream(path)], ...edit }),
    ),
    badField: await refusalOf(client.images.edit({ image: createReadStream(path), ...edit, n: 0 })),
    otherModel: await refusalOf(client.images.edit({ image: createReadStream(path), ...edit, model: "dall-e-3" })),
    streamed: await streamed({ ...edit, partial_images: 1 }),
    streamRefused: await refusalOf(streamed({ ...edit, size: "4000x4000" })),
    models: (await client.models.list()).data.map((model) => model.id),
    leftAfterSteps: await left(),
  }),
);
