// IndexedDB by promises.

/**
 * Open a database; return it. `stores`: name of each store with its options; `index`: name of the field by which that
 * store can be read too. Raises an error where the browser keeps nothing, as in some private windows.
 */
export async function openDatabase(name, stores) {
  const request = indexedDB.open(name, 1);
  request.onupgradeneeded = () => {
    for (const [store, { index, ...options }] of Object.entries(stores)) {
      const made = request.result.createObjectStore(store, options);
      if (index) made.createIndex(index, index);
    }
  };
  const database = await outcome(request);
  // A later version of the page, in another tab, could not open it otherwise, and users could not delete it.
  database.onversionchange = () => database.close();
  return database;
}

/**
 * Read or write some stores; return what `act` returns, once all is written. `act`: function that takes these stores and
 * awaits nothing but outcomes of their requests. If it fails, nothing is written.
 */
export async function transact(database, names, mode, act) {
  const transaction = database.transaction(names, mode);
  const ended = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error ?? new DOMException("", "AbortError"));
  });
  const acted = act(...names.map((name) => transaction.objectStore(name))).catch((error) => {
    if (!transaction.error) transaction.abort();
    throw error;
  });
  const [result] = await Promise.all([acted, ended]);
  return result;
}

/** Return what a request returns. */
export function outcome(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
