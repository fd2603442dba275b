import type { HubSettings } from "../../core/env.ts";
import { RlvError, UsageError } from "../../core/errors.ts";

/** The hub, or the way to it, failed: nothing the user wrote is wrong. */
export class HubError extends RlvError {}

/** The hub has no such repository, revision or file. */
export class NotOnHub extends UsageError {
  constructor(
    what: string,
    where: string,
    remedy: string,
    readonly kind: "repository" | "revision" | "file",
    /** Commit at which a file is missing. */
    readonly commit: string | null,
  ) {
    super(what, where, remedy);
  }
}

export interface Patience {
  /** Requests for one thing before giving up. */
  readonly attempts: number;
  /** Milliseconds before the second attempt; doubles with each. */
  readonly delay: number;
  /** Longest wait that the hub may ask for with Retry-After, in milliseconds. */
  readonly longest: number;
  /** Milliseconds without a byte after which a connection counts as dead. */
  readonly idle: number;
}

export const PATIENCE: Patience = { attempts: 5, delay: 1000, longest: 300_000, idle: 30_000 };

export type Progress = (line: string) => void;

export interface HubContext extends HubSettings {
  readonly patience: Patience;
  readonly progress: Progress;
}

/** Statuses after which the same request may succeed. */
const PASSING = new Set([408, 429, 500, 502, 503, 504]);
const REDIRECTS = new Set([301, 302, 303, 307, 308]);

/** A failed attempt that another one may mend. */
export class Passing extends Error {
  constructor(
    message: string,
    /** Milliseconds that the server asks to wait. */
    readonly wait: number | null = null,
  ) {
    super(message);
  }
}

/** Milliseconds that Retry-After asks for, in seconds or as a date, or else the t of a RateLimit header. */
export function retryAfter(headers: Headers, now: number): number | null {
  const value = headers.get("Retry-After") ?? /;\s*t=(\d+)/.exec(headers.get("RateLimit") ?? "")?.[1];
  if (value === undefined) return null;
  const seconds = Number(value);
  const wait = Number.isFinite(seconds) ? 1000 * seconds : Date.parse(value) - now;
  return Number.isNaN(wait) ? null : Math.max(0, wait);
}

/** Runs `body` again while what it meets may pass; `progressed` forgives the attempts before it. */
export async function withPatience<T>(
  context: HubContext,
  what: string,
  body: (progressed: () => void) => Promise<T>,
): Promise<T> {
  const { attempts, delay, longest } = context.patience;
  let failures = 0;
  for (;;) {
    try {
      return await body(() => {
        failures = 0;
      });
    } catch (error) {
      if (!(error instanceof Passing)) throw error;
      failures += 1;
      if (failures >= attempts)
        throw new HubError(
          `the hub did not answer (${error.message}, ${attempts} times)`,
          what,
          "try again later",
        );
      const wait = error.wait ?? delay * 2 ** (failures - 1);
      if (wait > longest)
        throw new HubError(
          `the hub asks to wait ${Math.ceil(wait / 1000)} s (${error.message})`,
          what,
          "try again later",
        );
      if (wait >= 1000) context.progress(`${what}: ${error.message}, again in ${Math.ceil(wait / 1000)} s`);
      await Bun.sleep(wait);
    }
  }
}

export interface Ask {
  readonly method?: "GET" | "HEAD";
  readonly headers?: Readonly<Record<string, string>>;
  /** HEAD of a file: its description stands beside a redirect to another host, which is not followed. */
  readonly stayOnHub?: boolean;
  readonly signal?: AbortSignal;
}

/**
 * One request. The token goes to the hub's own origin alone; redirects are followed by hand, so that it stays behind
 * when one leads elsewhere.
 */
export async function ask(context: HubContext, address: string, options: Ask = {}): Promise<Response> {
  const hub = new URL(context.endpoint).origin;
  let url = new URL(address, `${context.endpoint}/`);
  for (let hops = 0; hops < 10; hops++) {
    const headers = new Headers({ "User-Agent": "rlv", ...options.headers });
    if (context.token !== null && url.origin === hub) headers.set("Authorization", `Bearer ${context.token}`);
    let response: Response;
    try {
      response = await fetch(url, {
        method: options.method ?? "GET",
        headers,
        redirect: "manual",
        signal: options.signal ?? AbortSignal.timeout(context.patience.idle),
      });
    } catch (error) {
      throw new Passing(`no connection to ${url.host}: ${(error as Error).message}`);
    }
    const location = response.headers.get("Location");
    if (REDIRECTS.has(response.status) && location !== null) {
      const next = new URL(location, url);
      if (options.stayOnHub && next.origin !== url.origin) return response;
      await response.body?.cancel();
      if (url.protocol === "https:" && next.protocol !== "https:")
        throw new HubError("redirected from https to http", url.href, "try again later");
      url = next;
      continue;
    }
    if (PASSING.has(response.status)) {
      await response.body?.cancel();
      throw new Passing(`status ${response.status}`, retryAfter(response.headers, Date.now()));
    }
    return response;
  }
  throw new HubError("too many redirects", address, "try again later");
}

/** Throws what a status other than success means for `what`. */
export async function refuse(response: Response, what: string, context: HubContext): Promise<never> {
  const code = response.headers.get("X-Error-Code");
  const message = response.headers.get("X-Error-Message");
  await response.body?.cancel();
  const commit = response.headers.get("X-Repo-Commit");
  switch (code) {
    case "EntryNotFound":
      throw new NotOnHub("the hub has no such file", what, "check its name and revision", "file", commit);
    case "RevisionNotFound":
      throw new NotOnHub("the hub has no such revision", what, "check the revision", "revision", null);
    case "GatedRepo":
      throw new UsageError(
        context.token === null ? "gated on the hub, and no token is set" : "gated on the hub for this token",
        what,
        "accept its terms on its page, then set HF_TOKEN",
      );
  }
  const { status } = response;
  if (code === "RepoNotFound" || status === 401 || status === 404) {
    const token = context.token === null ? "; a private one needs HF_TOKEN" : " and HF_TOKEN";
    throw new NotOnHub("the hub has no such repository", what, `check its name${token}`, "repository", null);
  }
  if (status === 403)
    throw new UsageError("the hub refuses access", what, "check HF_TOKEN and the terms on its page");
  throw new HubError(
    `the hub answered ${status}${message === null ? "" : ` (${message})`}`,
    what,
    "try again later",
  );
}
