// What this browser keeps: edits with their pictures, the oldest of which make room, and forms. Never an API key.

import { address } from "./api.js";
import { openDatabase, outcome, transact } from "./database.js";

const MOST_EDITS = 100;
const MOST_BYTES = 512 * 2 ** 20;
const MOST_FORMS = 8;
// Files and outputs are apart from the edits, so that a change of an edit writes no picture again.
const STORES = {
  edits: { keyPath: "id", index: "at" },
  files: {},
  outputs: {},
  forms: { keyPath: "tab", index: "at" },
};
const OF_EDITS = ["edits", "files", "outputs"];

/** It dispatches "lost" when an edit could not be kept. */
export class Kept extends EventTarget {
  /** Ids of edits that could not be kept. */
  lost = new Set();
  #database;
  #channel;

  /** Open what is kept. Where the browser keeps nothing, the page works as well, and `works` is false. */
  static async open() {
    // One host may serve several pages, each under a prefix of its own.
    const name = `image-edits ${new URL(address("")).pathname}`;
    try {
      return new Kept(await openDatabase(name, STORES), new BroadcastChannel(name));
    } catch {
      return new Kept(null, null);
    }
  }

  constructor(database, channel) {
    super();
    this.#database = database;
    this.#channel = channel;
  }

  get works() {
    return this.#database !== null;
  }

  /** Whether an edit is still there when the page is loaded again. */
  holds(id) {
    return this.works && !this.lost.has(id);
  }

  /** Call `hear` with each change that another tab makes: the id of an edit, or null if all are forgotten. */
  listen(hear) {
    this.#channel?.addEventListener("message", ({ data }) => hear(data));
  }

  // --- edits ---

  /** Return the edits, the latest first. */
  async edits() {
    const ids = await this.#read(["edits"], (edits) => outcome(edits.index("at").getAllKeys()), []);
    const all = await Promise.all(ids.map((id) => this.edit(id)));
    return all.filter(Boolean).toReversed();
  }

  /** Return an edit with its files and its outputs, or null. */
  async edit(id) {
    return this.#read(OF_EDITS, async (edits, files, outputs) => {
      const parts = [outcome(edits.get(id)), outcome(files.get(id)), outcome(outputs.getAll(placesOf(id)))];
      const [edit, itsFiles, itsOutputs] = await Promise.all(parts);
      return edit ? { ...edit, files: itsFiles, outputs: itsOutputs } : null;
    }, null);
  }

  /** Keep an edit, and tell the other tabs. */
  async add(edit) {
    await this.#write(edit, async (edits, files, outputs) => {
      edits.put(stateOf(edit, bytesOf(edit.files) + bytesOf(edit.outputs)));
      files.put(edit.files, edit.id);
      for (const output of edit.outputs) outputs.put(output, [edit.id, output.place]);
    });
  }

  /** Keep how an edit stands, and an output that it has now. What another tab has removed or ended stays so. */
  async change(edit, output = null) {
    await this.#write(edit, async (edits, files, outputs) => {
      const former = await outcome(edits.get(edit.id));
      if (!former) return;
      const isNew = output && !(await outcome(outputs.getKey([edit.id, output.place])));
      if (isNew) outputs.put(output, [edit.id, output.place]);
      const bytes = former.bytes + (isNew ? bytesOf([output]) : 0);
      edits.put(former.state === "running" ? stateOf(edit, bytes) : { ...former, bytes });
    });
  }

  async remove(id) {
    this.lost.delete(id);
    await this.#try(() => transact(this.#database, OF_EDITS, "readwrite", async (...stores) => drop(id, ...stores)));
    this.#tell(id);
  }

  /** Forget everything. */
  async clear() {
    this.lost.clear();
    const names = Object.keys(STORES);
    await this.#try(() => transact(this.#database, names, "readwrite", async (...stores) => {
      for (const store of stores) store.clear();
    }));
    this.#tell(null);
  }

  // --- forms ---

  /** Return a tab's form, or the latest of any. */
  async form(tab) {
    return this.#read(["forms"], async (forms) => {
      const own = await outcome(forms.get(tab));
      return own ?? (await outcome(forms.index("at").getAll())).at(-1) ?? null;
    }, null);
  }

  /** Keep parts of a tab's form. */
  async keepForm(tab, parts) {
    await this.#try(() => transact(this.#database, ["forms"], "readwrite", async (forms) => {
      forms.put({ ...(await outcome(forms.get(tab))), ...parts, tab, at: Date.now() });
      const tabs = await outcome(forms.index("at").getAllKeys());
      for (const oldest of tabs.slice(0, -MOST_FORMS)) forms.delete(oldest);
    }));
  }

  // --- parts ---

  async #read(names, act, otherwise) {
    return (await this.#try(() => transact(this.#database, names, "readonly", act))) ?? otherwise;
  }

  async #write(edit, act) {
    const kept = await this.#try(async () => {
      await transact(this.#database, OF_EDITS, "readwrite", async (...stores) => {
        await act(...stores);
        await makeRoom(edit.id, ...stores);
      });
      return true;
    });
    if (!kept) {
      this.lost.add(edit.id);
      this.dispatchEvent(new Event("lost"));
    }
    this.#tell(edit.id);
  }

  /** Return what `act` returns, or null if the browser keeps nothing or has no room. */
  async #try(act) {
    if (!this.works) return null;
    try {
      return await act();
    } catch (error) {
      console.warn("This browser does not keep this:", error);
      return null;
    }
  }

  #tell(id) {
    this.#channel?.postMessage(id);
  }
}

/** Drop the oldest edits beyond the bounds, but not those that run, nor the one with this id. */
async function makeRoom(kept, edits, ...others) {
  const all = await outcome(edits.index("at").getAll());
  let bytes = all.reduce((sum, edit) => sum + edit.bytes, 0);
  let count = all.length;
  for (const edit of all.filter(({ id, state }) => id !== kept && state !== "running")) {
    if (count <= MOST_EDITS && bytes <= MOST_BYTES) return;
    drop(edit.id, edits, ...others);
    bytes -= edit.bytes;
    count -= 1;
  }
}

function drop(id, edits, files, outputs) {
  edits.delete(id);
  files.delete(id);
  outputs.delete(placesOf(id));
}

/** Return the range of the keys of an edit's outputs: an array is above every number. */
function placesOf(id) {
  return IDBKeyRange.bound([id], [id, []]);
}

function stateOf({ files, outputs, ...state }, bytes) {
  return { ...state, bytes };
}

/** Return the bytes of files or outputs, with those from which they were made. */
function bytesOf(things) {
  const files = things.flatMap(({ file, before = [] }) => [file, ...before]);
  return files.reduce((sum, { size }) => sum + size, 0);
}
