import { store, useStore } from "./store.ts";

/**
 * What is shown, as it stands behind the # of the address: "/run/NAME/rollouts?min=0.5". A copied address shows the
 * same view again.
 */
interface Route {
  readonly path: readonly string[];
  readonly query: Readonly<Record<string, string>>;
}

function parseRoute(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#?\/?/, "").split("?", 2);
  return {
    path: path.split("/").filter(Boolean).map(decode),
    query: Object.fromEntries(new URLSearchParams(query)),
  };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function hashOf(path: readonly string[], query: Readonly<Record<string, string>> = {}): string {
  const search = new URLSearchParams(query).toString();
  return `#/${path.map(encodeURIComponent).join("/")}${search === "" ? "" : `?${search}`}`;
}

const current = store(parseRoute(location.hash));
addEventListener("hashchange", () => current.set(parseRoute(location.hash)));

export const useRoute = (): Route => useStore(current);
export const route = (): Route => current.get();

export function go(path: readonly string[], query: Readonly<Record<string, string>> = {}): void {
  location.hash = hashOf(path, query);
}

/** Changes parts of the query; null and "" remove. Without `remember` the back button skips the state before. */
export function setQuery(changes: Readonly<Record<string, string | null>>, remember = false): void {
  const { path, query } = current.get();
  const next: Record<string, string> = { ...query };
  for (const [name, value] of Object.entries(changes))
    if (value === null || value === "") delete next[name];
    else next[name] = value;
  const hash = hashOf(path, next);
  if (hash === location.hash) return;
  if (remember) location.hash = hash;
  else {
    history.replaceState(null, "", hash);
    current.set(parseRoute(hash));
  }
}
