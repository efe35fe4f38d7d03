// The REST API: JSON, problem documents, event streams. The key lives in this tab's sessionStorage, never in a URL.
const KEY = "llmsched.key";

export const key = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY));

/** What the service refused: one sentence, as it says it. */
export class Refused extends Error {
  constructor(status, detail) { super(detail); this.status = status; }
}

const headers = (more) => (key() ? { Authorization: `Bearer ${key()}`, ...more } : more ?? {});

async function problem(response) {
  const body = await response.json().catch(() => null);
  const refused = new Refused(response.status, body?.detail ?? `the service answered ${response.status}`);
  if (response.status === 401) document.dispatchEvent(new CustomEvent("key-needed"));
  return refused;
}

async function ask(method, path, body, signal) {
  const options = { method, signal, headers: headers(body === undefined ? {} : { "Content-Type": "application/json" }) };
  if (body !== undefined) options.body = JSON.stringify(body);
  const response = await fetch(path, options);
  if (!response.ok) throw await problem(response);
  return response.status === 204 ? null : response.json();
}

export const get = (path, signal) => ask("GET", path, undefined, signal);
export const post = (path, body, signal) => ask("POST", path, body, signal);
export const put = (path, body, signal) => ask("PUT", path, body, signal);
export const remove = (path, signal) => ask("DELETE", path, undefined, signal);

/** Follows server-sent events with the key in a header; resumes after the last one it saw, until `signal` or the end. */
export async function follow(path, onEvent, signal) {
  let last = "", wait = 500;
  while (!signal.aborted) {
    try {
      const response = await fetch(path, { headers: headers(last ? { "Last-Event-ID": last } : {}), signal });
      if (!response.ok) throw await problem(response);
      wait = 500;
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
          const fields = Object.fromEntries(block.split("\n").filter((line) => line && !line.startsWith(":"))
            .map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
          if (!fields.event) continue;
          if (fields.id) last = fields.id;
          onEvent(fields.event, JSON.parse(fields.data));
        }
      }
    } catch (error) {
      if (signal.aborted || error instanceof Refused) return;
      await pause(wait, signal);
      wait = Math.min(wait * 2, 8000);
    }
  }
}

const pause = (ms, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, ms);
  signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
});

/**
 * Does `work` now and `every` milliseconds after it ended, until `signal`; not while nobody looks at the page.
 * Whether the service answers is told to the document as `reached` and `unreachable`.
 */
export async function repeat(every, work, signal) {
  while (!signal.aborted) {
    if (!document.hidden) {
      try {
        await work();
        document.dispatchEvent(new CustomEvent("reached"));
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Refused && error.status < 500) {
          if (error.status !== 401) document.dispatchEvent(new CustomEvent("refused", { detail: error.message }));
        } else {
          const detail = error instanceof Refused ? error.message : "the service does not answer";
          document.dispatchEvent(new CustomEvent("unreachable", { detail }));
          if (!(error instanceof Refused || error instanceof TypeError)) console.error(error);
        }
      }
    }
    await pause(every, signal);
  }
}
