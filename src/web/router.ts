/**
 * Routes of the server. A handler is called when host, origin and token have been found right and the body, if there is
 * one, has been read as JSON; what it throws becomes an answer (server.ts).
 */

export interface Call {
  readonly request: Request;
  readonly query: URLSearchParams;
  /** Of the pattern's :names. */
  readonly params: Readonly<Record<string, string>>;
  /** The JSON of a POST; undefined otherwise. */
  readonly body: unknown;
}

export type Handler = (call: Call) => Response | Promise<Response>;
export type Method = "GET" | "POST";

/** Becomes an answer with this status and { error }: text for the user, never that of another exception. */
export class HttpError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

interface Route {
  readonly method: Method;
  readonly parts: readonly string[];
  readonly handler: Handler;
}

/** What a parameter may be made of; anything else is no route. */
const PARAMETER = /^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$/;

export class Router {
  readonly #routes: Route[] = [];

  /** `pattern`: "/api/runs/:run/log"; a parameter is one segment of letters, digits, - and _. */
  add(method: Method, pattern: string, handler: Handler): void {
    this.#routes.push({ method, parts: pattern.split("/"), handler });
  }

  /** null: no such path; a list: the methods that it has, and not this one. */
  find(method: string, path: string): { handler: Handler; params: Record<string, string> } | Method[] | null {
    const parts = path.split("/");
    const methods: Method[] = [];
    for (const route of this.#routes) {
      const params = match(route.parts, parts);
      if (params === null) continue;
      if (route.method === method) return { handler: route.handler, params };
      methods.push(route.method);
    }
    return methods.length > 0 ? methods : null;
  }
}

function match(pattern: readonly string[], parts: readonly string[]): Record<string, string> | null {
  if (pattern.length !== parts.length) return null;
  const params: Record<string, string> = {};
  for (const [i, expected] of pattern.entries()) {
    const part = parts[i]!;
    if (!expected.startsWith(":")) {
      if (part !== expected) return null;
    } else if (PARAMETER.test(part)) params[expected.slice(1)] = part;
    else return null;
  }
  return params;
}

export function json(value: unknown, status = 200): Response {
  return jsonText(JSON.stringify(value), status);
}

/** An answer that is JSON already. */
export function jsonText(text: string, status = 200): Response {
  return new Response(text, { status, headers: { "content-type": "application/json;charset=utf-8" } });
}

/** One end of a stream of server-sent events. */
export interface EventStream {
  /** False when the reader is gone. A reader that is too slow is cut off. */
  send(event: string, data: unknown): boolean;
  /** What is JSON already, in one line. */
  sendText(event: string, json: string): boolean;
  close(): void;
}

/** What a reader that does not read may leave waiting. */
const MOST_WAITING_BYTES = 8 << 20;
/** So that a reader that is gone is noticed. */
const HEARTBEAT_MS = 15_000;
const MOST_STREAMS = 64;
let streams = 0;

/**
 * Server-sent events. `open` gets the stream and returns what is to be done when it ends, whoever ended it. The server
 * takes the idle limit off such answers (by their content type).
 */
export function events(call: Call, open: (stream: EventStream) => () => void): Response {
  if (streams >= MOST_STREAMS) throw new HttpError(429, "too many open pages");
  streams += 1;
  const encoder = new TextEncoder();
  let finish = () => {};
  const body = new ReadableStream<Uint8Array>(
    {
      start(controller) {
        let ended = false;
        let cleanUp = () => {};
        const push = (text: string): boolean => {
          if (ended) return false;
          if ((controller.desiredSize ?? 0) < 0) {
            finish();
            return false;
          }
          controller.enqueue(encoder.encode(text));
          return true;
        };
        const heartbeat = setInterval(() => push(": \n\n"), HEARTBEAT_MS);
        finish = () => {
          if (ended) return;
          ended = true;
          streams -= 1;
          clearInterval(heartbeat);
          cleanUp();
          try {
            controller.close();
          } catch {
            // The reader has gone before.
          }
        };
        call.request.signal.addEventListener("abort", () => finish());
        // Headers go out with the first byte.
        push(": \n\n");
        cleanUp = open({
          send: (event, data) => push(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`),
          sendText: (event, text) => push(`event: ${event}\ndata: ${text}\n\n`),
          close: () => finish(),
        });
        if (ended) cleanUp();
      },
      cancel: () => finish(),
    },
    new ByteLengthQueuingStrategy({ highWaterMark: MOST_WAITING_BYTES }),
  );
  return new Response(body, { headers: { "content-type": "text/event-stream" } });
}

/** A whole number of the query, within bounds. */
export function wholeNumber(
  query: URLSearchParams,
  name: string,
  fallback: number,
  min: number,
  max: number,
): number {
  const value = numberOf(query, name);
  if (value === undefined) return fallback;
  if (!Number.isInteger(value) || value < min || value > max)
    throw new HttpError(400, `${name} is a whole number from ${min} to ${max}`);
  return value;
}

/** A number of the query; undefined if it is not there. */
export function numberOf(query: URLSearchParams, name: string): number | undefined {
  const text = query.get(name);
  if (text === null || text === "") return undefined;
  const value = Number(text);
  if (!Number.isFinite(value)) throw new HttpError(400, `${name} is a number`);
  return value;
}

export function choice<T extends string>(
  query: URLSearchParams,
  name: string,
  choices: readonly T[],
  fallback: T,
): T {
  const text = query.get(name);
  if (text === null || text === "") return fallback;
  const found = choices.find((each) => each === text);
  if (found === undefined) throw new HttpError(400, `${name} is one of ${choices.join(", ")}`);
  return found;
}
