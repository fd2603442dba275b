import type { ApiError } from "../api.ts";
import type { ReplyEvents, ReplyRequest } from "../chat-api.ts";
import { Refusal } from "./client.ts";

type Handlers = { readonly [Name in keyof ReplyEvents]: (data: ReplyEvents[Name]) => void };

/** The whole events at the beginning of a stream's text, and what is left of it. */
export function eventsIn(text: string): { events: { name: string; data: unknown }[]; rest: string } {
  const blocks = text.split("\n\n");
  const rest = blocks.pop()!;
  const events = blocks.flatMap((block) => {
    const line = (field: string) =>
      block
        .split("\n")
        .find((each) => each.startsWith(`${field}: `))
        ?.slice(field.length + 2);
    const [name, data] = [line("event"), line("data")];
    // Comments keep the line alive.
    return name === undefined || data === undefined ? [] : [{ name, data: JSON.parse(data) as unknown }];
  });
  return { events, rest };
}

/** Asks for a reply and hands its events over until the last one. Throws a Refusal if it is not begun or breaks off. */
export async function streamReply(request: ReplyRequest, on: Handlers): Promise<void> {
  let response: Response;
  try {
    response = await fetch("/api/chat/reply", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(request),
    });
  } catch {
    throw new Refusal("the server does not answer: is it still running?", 0);
  }
  if (!response.ok || response.body === null) {
    const said = (await response.json().catch(() => null)) as ApiError | null;
    throw new Refusal(said?.error ?? `the server answered ${response.status}`, response.status);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let ended = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const { events, rest } = eventsIn(text + value);
      text = rest;
      for (const { name, data } of events) {
        if (!Object.hasOwn(on, name)) continue;
        ended ||= name === "done" || name === "failed";
        on[name as keyof ReplyEvents](data as never);
      }
    }
  } catch {
    // The connection broke; said below.
  }
  if (!ended) throw new Refusal("the reply broke off: the server has gone away", 0);
}
