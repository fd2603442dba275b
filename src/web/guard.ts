import { randomBytes, timingSafeEqual } from "node:crypto";
import { hostname, networkInterfaces } from "node:os";
import { HttpError, json } from "./router.ts";

/**
 * Who may speak to the server. Other pages of the same browser reach 127.0.0.1 too, some under a name of their own (DNS
 * rebinding): so the Host header must be one of ours, an Origin header ours as well, and every route asks for the secret
 * that only the terminal has shown.
 */
export class Guard {
  /** In the printed address. */
  readonly token = randomBytes(24).toString("base64url");
  readonly #session = randomBytes(24).toString("base64url");
  readonly #hosts: ReadonlySet<string>;
  readonly #cookie: string;
  readonly #wrong = new Bucket(20, 10);
  /** Opens the page once, within a minute: the arguments of a program, a browser's too, can be seen by others. */
  #code: { readonly text: string; readonly until: number } | null = null;

  constructor(host: string, port: number) {
    this.#hosts = new Set(
      namesOf(host).flatMap((name) => [`${name}:${port}`, ...(port === 80 ? [name] : [])]),
    );
    // Cookies know no ports: two servers of one machine must not take each other's.
    this.#cookie = `rlv_${port}`;
  }

  /** Throws 403 for a foreign Host. */
  host(request: Request): void {
    const host = request.headers.get("host")?.toLowerCase();
    if (host === undefined || !this.#hosts.has(host)) throw new HttpError(403, "foreign Host");
  }

  /** Throws 403 for a foreign Origin, or a request that another site's page makes; a link may lead to the page. */
  origin(request: Request, isPage: boolean): void {
    const origin = request.headers.get("origin");
    if (origin !== null && !(origin.startsWith("http://") && this.#hosts.has(origin.slice(7).toLowerCase())))
      throw new HttpError(403, "foreign Origin");
    // A page of another port here is the same site for cookies; browsers say so in this header.
    const site = request.headers.get("sec-fetch-site");
    const foreign = site !== null && site !== "same-origin" && site !== "none";
    const isLink = isPage && request.method === "GET" && request.headers.get("sec-fetch-mode") === "navigate";
    if (foreign && !isLink) throw new HttpError(403, "foreign site");
  }

  /** Whether a request has the secret: as cookie, as bearer token, or (`given`) in its address. Throws 429. */
  knows(request: Request, given: string | null): boolean {
    const bearer = /^Bearer ([\w-]+)$/.exec(request.headers.get("authorization") ?? "")?.[1];
    const cookie = cookieNamed(request.headers.get("cookie") ?? "", this.#cookie);
    if (same(bearer, this.token) || same(given, this.token) || same(cookie, this.#session)) return true;
    if (this.#code !== null && same(given, this.#code.text)) {
      const { until } = this.#code;
      this.#code = null;
      if (Date.now() < until) return true;
    }
    if ((bearer ?? given ?? cookie) !== undefined && !this.#wrong.take())
      throw new HttpError(429, "too many wrong tokens");
    return false;
  }

  /** A token for one use. */
  newCode(): string {
    const text = randomBytes(24).toString("base64url");
    this.#code = { text, until: Date.now() + 60_000 };
    return text;
  }

  get setCookie(): string {
    return `${this.#cookie}=${this.#session}; Path=/; HttpOnly; SameSite=Strict`;
  }
}

function namesOf(host: string): string[] {
  const bracketed = (address: string) => (address.includes(":") ? `[${address}]` : address);
  const own = ["127.0.0.1", "localhost", "[::1]"];
  if (host !== "0.0.0.0" && host !== "::") return [...own, bracketed(host.toLowerCase())];
  const addresses = Object.values(networkInterfaces()).flatMap((each) => each ?? []);
  return [...own, hostname().toLowerCase(), ...addresses.map(({ address }) => bracketed(address))];
}

function same(given: string | null | undefined, secret: string): boolean {
  if (given === null || given === undefined) return false;
  const [a, b] = [Buffer.from(given), Buffer.from(secret)];
  return a.length === b.length && timingSafeEqual(a, b);
}

function cookieNamed(header: string, name: string): string | undefined {
  for (const part of header.split(";")) {
    const at = part.indexOf("=");
    if (part.slice(0, at).trim() === name) return part.slice(at + 1).trim();
  }
  return undefined;
}

/** So many at once, and so many a second from then on. */
export class Bucket {
  #left: number;
  #since = performance.now();

  constructor(
    readonly burst: number,
    readonly perSecond: number,
  ) {
    this.#left = burst;
  }

  take(): boolean {
    const now = performance.now();
    this.#left = Math.min(this.burst, this.#left + ((now - this.#since) / 1000) * this.perSecond);
    this.#since = now;
    if (this.#left < 1) return false;
    this.#left -= 1;
    return true;
  }
}

const HEADERS = {
  "content-security-policy":
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'; require-trusted-types-for 'script'",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
} as const;

/** Every answer has these, whatever it says. */
export function secured(response: Response): Response {
  for (const [name, value] of Object.entries(HEADERS)) response.headers.set(name, value);
  if (!response.headers.has("cache-control")) response.headers.set("cache-control", "no-store");
  return response;
}

export function refusal(error: HttpError): Response {
  return json({ error: error.message }, error.status);
}

/** The JSON of a POST: its type, its size and itself are checked. */
export async function bodyOf(request: Request, limit: number): Promise<unknown> {
  const type = request.headers.get("content-type") ?? "";
  if (!/^application\/json(\s*;\s*charset=utf-8)?$/i.test(type))
    throw new HttpError(415, "a body is application/json");
  const length = request.headers.get("content-length");
  if (length !== null && Number(length) > limit)
    throw new HttpError(413, `a body has at most ${limit} bytes`);
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  try {
    for await (const chunk of request.body ?? []) {
      bytes += chunk.byteLength;
      if (bytes > limit) break;
      chunks.push(chunk);
    }
  } catch {
    throw new HttpError(400, "the body ended before its end");
  }
  if (bytes > limit) throw new HttpError(413, `a body has at most ${limit} bytes`);
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(chunks));
    return JSON.parse(text);
  } catch {
    throw new HttpError(400, "the body is not JSON");
  }
}
