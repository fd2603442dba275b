import type { ReplyEvents, ReplyRequest } from "../chat-api.ts";
import { posting, Refusal, request } from "./client.ts";

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
export async function streamReply(wanted: ReplyRequest, on: Handlers): Promise<void> {
  const { body, status } = await request("/api/chat/reply", posting(wanted));
  if (body === null) throw new Refusal(`the server answered ${status}`, status);
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
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
