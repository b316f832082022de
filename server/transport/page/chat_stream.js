// One request for an answer, and what comes of it.

async function* eventsOf(answer) { // the data of each server-sent event
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const one of lines) {
      if (one.startsWith("data: ")) yield one.slice(6);
    }
  }
}

class Refused extends Error {} // before anything of the answer came

async function refusal(answer) {
  let words = `The server answered with status ${answer.status}.`;
  try {
    words = (await answer.json()).error.message || words;
  } catch {
    // Not from our server, then; the status has to do.
  }
  const wait = answer.headers.get("Retry-After");
  return wait ? `${words} Try again in ${span(Number(wait))}.` : words;
}

function addDelta(turn, delta) {
  const thought = delta.reasoning_content ?? delta.reasoning;
  if (thought) turn.reasoning = (turn.reasoning || "") + thought;
  if (delta.content) turn.content += delta.content;
  for (const call of delta.tool_calls || []) {
    turn.calls ??= [];
    const known = turn.calls[call.index] ??= { name: "", arguments: "" };
    known.name += call.function?.name || "";
    known.arguments += call.function?.arguments || "";
  }
  return Boolean(thought || delta.content || delta.tool_calls);
}

function progressOf(told) { // in words
  if (told.place > 0) return `In the queue: ${told.place === 1 ? "the next" : `place ${digits(told.place)}`}.`;
  return [
    `Prompt: ${digits(told.processed)} of ${many(told.total, "token")}`,
    told.cache ? `${digits(told.cache)} cached` : "",
    isNumber(told.remaining_ms) ? `${span(told.remaining_ms / 1000)} to go` : "",
  ].filter(Boolean).join(", ");
}

// Adds to the turn what comes, and calls changed each time. Returns the finish reason; throws.
async function stream(body, turn, signal, changed) {
  const started = performance.now();
  const response = await fetch(`${ROOT}v1/chat/completions`, {
    method: "POST", body: JSON.stringify(body), signal, headers: withKey({ "Content-Type": "application/json" }),
  });
  if (response.status === 401) askForKey();
  if (!response.ok) throw new Refused(await refusal(response));
  let finish = "", first;
  for await (const data of eventsOf(response)) {
    if (data === "[DONE]") return finish;
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    if (first === undefined && event.prompt_progress) {
      turn.progress = event.prompt_progress;
      turn.note = progressOf(turn.progress);
    }
    if (event.usage) turn.figures = { ...turn.figures, usage: event.usage };
    for (const choice of event.choices) {
      finish = choice.finish_reason || finish;
      if (addDelta(turn, choice.delta)) {
        const now = performance.now();
        first ??= now;
        delete turn.progress;
        turn.figures = { ...turn.figures, first_s: (first - started) / 1000, stream_s: (now - first) / 1000 };
        turn.note = turn.content ? "" : "It is thinking.";
      }
    }
    changed();
  }
  throw new Error("The connection ended before the answer did.");
}
