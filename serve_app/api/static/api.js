// Client of the API. Every failure becomes an ApiError, whose message is written for the user.

import { eventData } from "./events.js";

const PREVIEWS = 3;

export class ApiError extends Error {
  /** `code`: the server's name of the error; `param`: the field that is wrong. Both are null without such an answer. */
  constructor(message, { status = null, code = null, param = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param });
  }

  /** Whether the same edit would be refused again. */
  get isRefusal() {
    return ["INVALID_INPUT", "PAYLOAD_TOO_LARGE"].includes(this.code);
  }
}

/** Return the absolute address of a path of this server. The page itself may have a route prefix. */
export function address(path) {
  return new URL(path, document.baseURI).href;
}

/** Return what the page needs before the first edit: whether the server needs a key, and its limits. */
export async function serverFacts() {
  return (await request("static/server.json")).json();
}

/**
 * Return what the server says of its model: { id, max_references, masks, presets, adapters }. If the server needs a key, an invalid one
 * raises an ApiError of status 401.
 */
export async function servedModel(key) {
  const { data } = await (await request("v1/models", { headers: authorization(key) })).json();
  return data[0];
}

/**
 * Yield the events of one edit. `call`: { files, fields } from the form, where each of `files` is { field, file, name };
 * `signal`: cancels the edit.
 */
export async function* streamEdit(call, key, signal) {
  const body = new FormData();
  for (const [name, value] of Object.entries(call.fields)) body.append(name, value);
  for (const { field, file, name } of call.files) body.append(field, file, name);
  body.append("stream", "true");
  body.append("partial_images", PREVIEWS);
  const response = await request("v1/images/edits", { method: "POST", headers: authorization(key), body, signal });
  for await (const data of unbroken(eventData(response.body), signal)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(sentence(event.error.message), event.error);
    yield event;
  }
  throw new ApiError("The connection ended before everything was done.");
}

async function* unbroken(events, signal) {
  try {
    yield* events;
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError("The connection broke before everything was done.");
  }
}

function authorization(key) {
  // A header holds bytes, and the server reads them as UTF-8.
  return key ? { Authorization: `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}` } : {};
}

async function request(path, options = {}) {
  let response;
  try {
    // With credentials, a 401 would make the browser ask for a user and a password in a dialog of its own.
    response = await fetch(address(path), { credentials: "omit", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("No answer: the server cannot be reached, or it closed the connection.");
  }
  if (!response.ok) throw await problem(response);
  return response;
}

async function problem(response) {
  const body = await response.json().catch(() => null);
  // A proxy in front of the server answers with a body of another form.
  const message = sentence(body?.error?.message ?? `The server answered with status ${response.status}`);
  const wait = response.headers.get("Retry-After");
  const { code, param } = body?.error ?? {};
  return new ApiError(wait ? `${message} Try again in ${wait} seconds.` : message, { status: response.status, code, param });
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
