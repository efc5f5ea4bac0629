// Server-sent events over fetch: EventSource can neither post nor send a key.

/** Post the JSON text `body` to `path` and call `on[name](data)` for each event; throws an Error with the server's message. */
export async function follow(path, body, headers, signal, on) {
  const answer = await reach(path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body,
    signal,
  });
  if (!answer.ok) throw await refusal(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const event = /^event: (.*)\ndata: (.*)$/.exec(part);
      if (!event) continue; // a comment that keeps the connection
      const data = JSON.parse(event[2]);
      if (event[1] === "error") throw new Error(data.error.message);
      on[event[1]]?.(data);
    }
  }
}

/** `fetch`, with an Error in plain words where the server does not answer. */
export async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(`The server cannot be reached (${error.message}).`);
  }
}

/** The error of an answer that is no success. */
export async function refusal(answer) {
  let message = `the server answered ${answer.status}`, param = null;
  try {
    ({ message, param } = (await answer.json()).error);
  } catch {
    // the answer is no JSON document: the status says all that is known
  }
  const error = new Error(message);
  Object.assign(error, { status: answer.status, param });
  return error;
}
