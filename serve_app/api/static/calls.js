// An edit as a command line and as a script for copying. Both read the API key from the environment.

import { address, endpoint } from "./api.js";

const KEY_VARIABLE = "IMAGE_EDITS_API_KEY";

/** Return a curl command. `call`: { files, fields } from the form. `needsKey`: whether the server has keys. */
export function curlCall(call, needsKey) {
  const lines = [`curl ${quoted(address(endpoint(call.files)))} -o answer.json`];
  if (needsKey) lines.push(`-H "Authorization: Bearer $${KEY_VARIABLE}"`);
  // Not -F, which reads a text that begins with @ or < as the name of a file.
  for (const [name, value] of Object.entries(call.fields)) {
    for (const each of [value].flat()) lines.push(`--form-string ${quoted(`${name}=${each}`)}`);
  }
  for (const { field, name } of call.files) {
    lines.push(`-F ${quoted(`${field}=@"${name.replace(/[\\"]/g, "\\$&")}"`)}`);
  }
  return `${lines.join(" \\\n  ")}\n`;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Return a Python script that needs only the library `requests`. It saves output_0.png and so on, in output order. */
export function pythonCall(call, needsKey) {
  const files = call.files.map(({ field, name }) => `(${literal(field)}, ${literal(name)})`);
  const data = Object.entries(call.fields).map(([name, value]) => `${literal(name)}: ${literal(value)}`);
  // Without files, requests would send a form of another type than the server reads.
  const texts = Object.entries(call.fields).map(([name, value]) => `${literal(name)}: (None, ${literal(value)})`);
  const sent = files.length
    ? `files=[(field, (name, Path(name).read_bytes())) for field, name in [${files.join(", ")}]],
    data={${data.join(", ")}},`
    : `files={${texts.join(", ")}},`;
  const key = needsKey ? `\n    headers={"Authorization": "Bearer " + os.environ["${KEY_VARIABLE}"]},` : "";
  return `import base64
${needsKey ? "import os\n" : ""}from pathlib import Path

import requests

response = requests.post(
    ${literal(address(endpoint(call.files)))},${key}
    ${sent}
    timeout=660,
)
response.raise_for_status()
for k, item in enumerate(response.json()["data"]):
    Path(f"output_{k}.png").write_bytes(base64.b64decode(item["b64_json"]))
`;
}

/** Return a text, or a list of texts, as a Python literal: its JSON is a valid one. */
function literal(value) {
  return JSON.stringify(value);
}
