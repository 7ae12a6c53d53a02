// Client of the API. Every failure becomes an ApiError, whose message is written for the user.

import { eventData } from "./events.js";
import { t, UserError } from "./texts.js";

const PREVIEWS = 3;

export class ApiError extends UserError {
  /**
   * `make`: function that returns the message; `code`: the server's name of the error; `param`: the field that is wrong.
   * Both are null without such an answer.
   */
  constructor(make, { status = null, code = null, param = null } = {}) {
    super(make);
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
 * Return what the server says of its model: { id, max_references, native_area, demonstration, masks, presets,
 * adapters }. If the server needs a key, an invalid one
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
  for (const [name, value] of Object.entries(call.fields)) for (const each of [value].flat()) body.append(name, each);
  for (const { field, file, name } of call.files) body.append(field, file, name);
  body.append("stream", "true");
  body.append("partial_images", PREVIEWS);
  const response = await request("v1/images/edits", { method: "POST", headers: authorization(key), body, signal });
  for await (const data of unbroken(eventData(response.body), signal)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(() => sentence(event.error.message), event.error);
    yield event;
  }
  throw new ApiError(() => t("server.ended"));
}

async function* unbroken(events, signal) {
  try {
    yield* events;
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError(() => t("server.broke"));
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
    throw new ApiError(() => t("server.silent"));
  }
  if (!response.ok) throw await problem(response);
  return response;
}

async function problem(response) {
  const body = await response.json().catch(() => null);
  const { status } = response;
  const { message, code, param } = body?.error ?? {};
  // A proxy in front of the server answers with a body of another form.
  const said = () => (message ? sentence(message) : t("server.status", { status }));
  const wait = response.headers.get("Retry-After");
  const make = wait ? () => t("server.later", { message: said(), count: Number(wait) }) : said;
  return new ApiError(make, { status, code, param });
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
