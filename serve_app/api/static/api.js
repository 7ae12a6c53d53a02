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

  /** Whether the server, or the way to it, is only away for a while. */
  get isPassing() {
    return this.status === null ? this.code === null : this.status >= 502;
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
 * Return what the server says of its model: { id, max_references, native_area, demonstration, license, masks,
 * transparency, generates, presets, adapters }. If the server needs a key, an invalid one raises an ApiError of status 401.
 */
export async function servedModel(key) {
  const { data } = await (await request("v1/models", { headers: authorization(key) })).json();
  return data[0];
}

/** Return the path of the endpoint for a call with these files: without any, pictures are made from the text alone. */
export function endpoint(files) {
  return files.length ? "v1/images/edits" : "v1/images/generations";
}

/**
 * Start an edit as a job; return the id of the job, which is the same however often this is sent. `files`, `fields`: from
 * the form, where each of `files` is { field, file, name }.
 */
export async function createJob({ id, files, fields }, key) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) for (const each of [value].flat()) body.append(name, each);
  for (const { field, file, name } of files) body.append(field, file, name);
  body.append("partial_images", PREVIEWS);
  const headers = { ...authorization(key), "Idempotency-Key": id };
  return (await (await request(`${endpoint(files)}?async=true`, { method: "POST", headers, body })).json()).id;
}

/** Yield the events of a job from its present state on, until it has succeeded. */
export async function* jobEvents(id, key, signal) {
  const response = await request(`v1/jobs/${id}?stream=true`, { headers: authorization(key), signal });
  for await (const data of unbroken(eventData(response.body), signal)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(() => sentence(event.error.message), event.error);
    // What is made from a text alone is shown as an edit is.
    yield { ...event, type: event.type.replace("image_generation.", "image_edit.") };
  }
  throw new ApiError(() => t("server.ended"));
}

/** Return the progress of a job as an event, or null if it has succeeded. Raises the error with which it failed. */
export async function jobProgress(id, key, signal) {
  const { status, error, steps_done, steps, place } = await job(id, key, signal);
  if (error) throw new ApiError(() => sentence(error.message), error);
  return status === "succeeded" ? null : { type: "image_edit.progress", steps_done, steps, place };
}

/** Yield the events with which a job that has succeeded had ended. */
export async function* jobOutputs(id, key, signal) {
  const { data, output_format, usage } = (await job(id, key, signal)).result;
  for (const output of data) yield { type: "image_edit.completed", output_format, ...output };
  yield { type: "image_edit.done", usage };
}

/** Cancel a job, or forget its outputs. */
export async function deleteJob(id, key) {
  await request(`v1/jobs/${id}`, { method: "DELETE", headers: authorization(key) });
}

async function job(id, key, signal) {
  return (await request(`v1/jobs/${id}`, { headers: authorization(key), signal })).json();
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
