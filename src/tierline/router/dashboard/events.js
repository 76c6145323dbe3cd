// Server-sent events over fetch, which can show a token and does not repeat a request by itself as EventSource does.

/** Yields {event, data} of a response's body until it ends. https://html.spec.whatwg.org/multipage/server-sent-events.html */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "", event = "", data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      unread += value;
      const lines = unread.split(/\r\n|\n|\r(?!$)/);
      unread = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { event: event || "message", data: data.join("\n") };
          event = "";
          data = [];
        } else if (!line.startsWith(":")) {
          const at = line.indexOf(":");
          const field = at < 0 ? line : line.slice(0, at);
          const text = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
          if (field === "data") data.push(text);
          if (field === "event") event = text;
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** What a refusal says: the message in OpenAI's shape, or the status. */
export async function refusalOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The router answered ${response.status}.`;
  }
}
