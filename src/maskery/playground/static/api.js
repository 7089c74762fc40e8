// Questions to the server. One question of a kind is open at a time: a newer one drops the older.

let command = "maskery playground"; // starts the server again
const LOOK_AFTER = 2000; // milliseconds between two looks whether it is back
const open = new Map();
let looking = false;

/** Ask the server. Where it is gone, say so; the window hears "back" when it is there again. */
async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!looking) look();
    throw new Error(
      `The server has stopped; start it again with ${command}. This page then goes on by itself.`,
    );
  }
}

async function look() {
  looking = true;
  for (let back = false; !back; ) {
    await new Promise((done) => setTimeout(done, LOOK_AFTER));
    back = await fetch("/api/info").then((response) => response.ok, () => false);
  }
  looking = false;
  dispatchEvent(new Event("back"));
}

/** Keep the command that started the server; this page needs it at the same port again. */
export function startedBy(given) {
  command = `${given.replace(/ --port[ =]\d+/, "")} --port ${location.port || 80}`;
}

/** The answer to GET /api/info. */
export async function info() {
  return answer(await reach("/api/info"));
}

/**
 * POST to /api/NAME.
 * @param {string} name of the function
 * @param {object} question its JSON
 * @param {string} kind what it replaces when it is asked again
 */
export async function ask(name, question, kind) {
  open.get(kind)?.abort();
  const control = new AbortController();
  open.set(kind, control);
  try {
    for (let attempt = 0; ; attempt += 1) {
      const response = await reach(`/api/${name}`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(question),
        signal: control.signal,
      });
      if (response.status !== 503 || attempt === 3) return await answer(response);
      await new Promise((done) => setTimeout(done, 400 * (attempt + 1)));
    }
  } finally {
    if (open.get(kind) === control) open.delete(kind);
  }
}

/** Send a picture; the answer names it. */
export async function sendPicture(file) {
  return answer(
    await reach("/api/picture", {
      method: "PUT",
      headers: { "Content-Type": file.type || "image/unknown" },
      body: file,
    }),
  );
}

async function answer(response) {
  const data = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(data.error ?? `the server answered ${response.status}`);
  return data;
}
