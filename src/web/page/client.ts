import { useEffect, useRef, useState } from "preact/hooks";
import type { ApiError } from "../api.ts";

/** What the server refused, in its own words. */
export class Refusal extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

/** What the server answers. Throws a Refusal where it does not, or refuses. */
export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if ((error as Error).name === "AbortError") throw error;
    throw new Refusal("the server does not answer: is it still running?", 0);
  }
  if (response.ok) return response;
  const said = (await response.json().catch(() => null)) as ApiError | null;
  throw new Refusal(said?.error ?? `the server answered ${response.status}`, response.status);
}

export async function ask<T>(path: string, init: RequestInit = {}): Promise<T> {
  const response = await request(path, init);
  const body = (await response.json().catch(() => null)) as T | null;
  if (body === null) throw new Refusal(`the server answered ${response.status}`, response.status);
  return body;
}

/** A request that carries JSON. */
export const posting = (body: unknown): RequestInit => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

export const post = <T>(path: string, body: unknown): Promise<T> => ask<T>(path, posting(body));

export function queryOf(values: Readonly<Record<string, string | number | null | undefined>>): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(values))
    if (value !== null && value !== undefined && value !== "") search.set(name, String(value));
  const text = search.toString();
  return text === "" ? "" : `?${text}`;
}

export const runPath = (id: string, rest = ""): string => `/api/runs/${encodeURIComponent(id)}${rest}`;

/** Where groups of runs are asked for: of a sweep, or of runs that somebody has chosen. */
export type GroupsPath = (rest?: string, query?: Parameters<typeof queryOf>[0]) => string;

export const sweepPath =
  (id: string): GroupsPath =>
  (rest = "", query = {}) =>
    `/api/sweeps/${encodeURIComponent(id)}${rest}${queryOf(query)}`;

export const groupedPath =
  (runs: readonly string[]): GroupsPath =>
  (rest = "", query = {}) =>
    `/api/grouped${rest}${queryOf({ runs: runs.join(","), ...query })}`;

export interface Answer<T> {
  /** The last good answer stays while the next one is under way. */
  readonly data: T | null;
  readonly error: Error | null;
  readonly loading: boolean;
  readonly again: () => void;
}

/** What a path answers; null asks nothing. `fresh` changes when the answer may have changed. */
export function useAnswer<T>(path: string | null, fresh: unknown = 0): Answer<T> {
  const [state, set] = useState<Omit<Answer<T>, "again">>({
    data: null,
    error: null,
    loading: path !== null,
  });
  const [round, setRound] = useState(0);
  useEffect(() => {
    if (path === null) {
      set({ data: null, error: null, loading: false });
      return;
    }
    const stop = new AbortController();
    set((old) => ({ ...old, loading: true }));
    ask<T>(path, { signal: stop.signal }).then(
      (data) => set({ data, error: null, loading: false }),
      (error: Error) => {
        if (!stop.signal.aborted) set((old) => ({ data: old.data, error, loading: false }));
      },
    );
    return () => stop.abort();
  }, [path, fresh, round]);
  const again = useRef(() => setRound((n) => n + 1)).current;
  return { ...state, again };
}
