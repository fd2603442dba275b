import { UsageError } from "../core/errors.ts";
import { type Asset, readAssets } from "./assets.ts";
import { Bucket, bodyOf, Guard, refusal, secured } from "./guard.ts";
import { HttpError, json, type Router } from "./router.ts";

export interface ServerOptions {
  readonly host: string;
  /** null: the usual one, or the next that is free. */
  readonly port: number | null;
}

export interface RunningServer {
  /** With the token, for the one who started it. */
  readonly address: string;
  /** One that works once, for a browser's command line. */
  openingAddress(): string;
  readonly token: string;
  readonly port: number;
  stop(): Promise<void>;
}

const USUAL_PORT = 8420;
const PORTS_TRIED = 20;
/** Of a body: a long conversation fits. */
export const BODY_LIMIT = 1 << 20;
/** Seconds in which a client must go on with its request, or with reading its answer. */
const IDLE_S = 30;
/** Seconds for an answer; the most that Bun allows. */
const ANSWER_S = 255;

/**
 * The HTTP server of the page. Whoever asks, in this order: Host and Origin (403), token (401), path (404), method (405),
 * rate (429), body (415, 413, 400), handler.
 */
export function startServer(options: ServerOptions, router: Router): RunningServer {
  const assets = readAssets();
  const actions = new Bucket(30, 10);
  let guard: Guard;

  const answer = async (request: Request, server: Bun.Server<undefined>): Promise<Response> => {
    guard.host(request);
    const url = URL.parse(request.url);
    if (url === null) throw new HttpError(400, "no such address");
    const path = url.pathname;
    const api = path.startsWith("/api/");
    guard.origin(request, !api);
    const given = url.searchParams.get("token");
    if (!guard.knows(request, request.method === "GET" ? given : null))
      throw new HttpError(401, "open the address with the token that rlv serve has printed");
    if (!api) return page(request, url, given);
    const found = router.find(request.method, path);
    if (found === null) throw new HttpError(404, "no such address");
    if (Array.isArray(found)) {
      const refused = refusal(new HttpError(405, `only ${found.join(", ")}`));
      refused.headers.set("allow", found.join(", "));
      return refused;
    }
    let body: unknown;
    if (request.method === "POST") {
      if (!actions.take()) throw new HttpError(429, "too many requests, wait a moment");
      body = await bodyOf(request, BODY_LIMIT);
    }
    // From here on it is the server that takes its time: a model may have to be opened.
    server.timeout(request, ANSWER_S);
    const response = await found.handler({ request, query: url.searchParams, params: found.params, body });
    if (response.headers.get("content-type") === "text/event-stream") server.timeout(request, 0);
    if (given !== null) response.headers.set("set-cookie", guard.setCookie);
    return response;
  };

  const page = (request: Request, url: URL, given: string | null): Response => {
    if (request.method !== "GET" && request.method !== "HEAD") {
      const refused = refusal(new HttpError(405, "only GET"));
      refused.headers.set("allow", "GET, HEAD");
      return refused;
    }
    const asset = assets.get(url.pathname === "/" ? "index.html" : url.pathname.slice(1));
    if (asset === undefined) throw new HttpError(404, "no such address");
    return given === null ? file(request, asset) : exchange(request, url.pathname);
  };

  /** The token leaves the address and becomes a cookie. */
  const exchange = (request: Request, path: string): Response => {
    const headers = { "set-cookie": guard.setCookie, location: path };
    const site = request.headers.get("sec-fetch-site");
    if (site === null || site === "none" || site === "same-origin")
      return new Response(null, { status: 303, headers });
    // Behind a link of another site a browser keeps a strict cookie back until a page of this one leads on.
    return new Response(
      `<!doctype html><title>rlv</title><meta http-equiv="refresh" content="0;url=${path}">`,
      {
        headers: { "set-cookie": guard.setCookie, "content-type": "text/html;charset=utf-8" },
      },
    );
  };

  const server = listen(options, async (request, self) => {
    try {
      return secured(await answer(request, self));
    } catch (error) {
      if (error instanceof HttpError) return secured(refusal(error));
      process.stderr.write(
        `rlv: the page's request failed: ${error instanceof Error ? error.message : error}\n`,
      );
      return secured(json({ error: "the server failed, its terminal says why" }, 500));
    }
  });
  const port = server.port!;
  guard = new Guard(options.host, port);
  const base = `http://${reachable(options.host)}:${port}/`;
  return {
    address: `${base}?token=${guard.token}`,
    openingAddress: () => `${base}?token=${guard.newCode()}`,
    token: guard.token,
    port,
    stop: () => server.stop(true),
  };
}

/** The name under which this machine reaches what listens on an address. */
function reachable(host: string): string {
  if (host === "0.0.0.0") return "127.0.0.1";
  if (host === "::") return "[::1]";
  return host.includes(":") ? `[${host}]` : host;
}

function file(request: Request, asset: Asset): Response {
  const headers = {
    "content-type": asset.type,
    "cache-control": asset.immutable ? "private, max-age=31536000, immutable" : "no-cache",
    etag: `"${asset.sha256.slice(0, 32)}"`,
  };
  if (request.headers.get("if-none-match") === headers.etag)
    return new Response(null, { status: 304, headers });
  return new Response(request.method === "HEAD" ? null : asset.data, { headers });
}

type Fetch = (request: Request, server: Bun.Server<undefined>) => Promise<Response>;

function listen({ host, port }: ServerOptions, fetch: Fetch): Bun.Server<undefined> {
  for (let tried = 0; ; tried++) {
    const wanted = port ?? USUAL_PORT + tried;
    try {
      return Bun.serve({
        hostname: host,
        port: wanted,
        fetch,
        development: false,
        // Bun shares ports between processes unless it is told not to, outside of development.
        reusePort: false,
        idleTimeout: IDLE_S,
        // Above ours: what is over ours is answered with 413, and what is over this one cut off.
        maxRequestBodySize: 4 * BODY_LIMIT,
        error: () => secured(json({ error: "the server failed" }, 500)),
      });
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "EADDRINUSE" && port === null && tried + 1 < PORTS_TRIED) continue;
      const reason =
        code === "EADDRINUSE"
          ? "the port is in use"
          : code === "EACCES"
            ? "the port may not be used"
            : "cannot listen";
      throw new UsageError(
        reason,
        `${host}:${wanted}`,
        "choose another with --port, 0 takes any that is free",
      );
    }
  }
}
