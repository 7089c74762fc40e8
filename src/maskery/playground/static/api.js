// Questions to the server. One question of a kind is open at a time: a newer one drops the older.

const open = new Map();

/** The answer to GET /api/info. */
export async function info() {
  return answer(await fetch("/api/info"));
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
      const response = await fetch(`/api/${name}`, {
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
    await fetch("/api/picture", {
      method: "PUT",
      headers: { "Content-Type": file.type || "image/unknown" },
      body: file,
    }),
  );
}

async function answer(response) {
  const data = await response.json();
  if (!response.ok) throw new Error(data.error ?? `the server answered ${response.status}`);
  return data;
}
