import { useEffect, useState } from "preact/hooks";

/** A value that components follow. */
interface Store<T> {
  get(): T;
  set(next: T): void;
  /** Calls `on` after every change; returns what ends that. */
  follow(on: () => void): () => void;
}

export function store<T>(initial: T): Store<T> {
  let value = initial;
  const followers = new Set<() => void>();
  return {
    get: () => value,
    set(next) {
      if (Object.is(next, value)) return;
      value = next;
      for (const on of [...followers]) on();
    },
    follow(on) {
      followers.add(on);
      return () => followers.delete(on);
    },
  };
}

export function useStore<T>(of: Store<T>): T {
  const [value, set] = useState(of.get);
  useEffect(() => {
    const read = () => set(() => of.get());
    read();
    return of.follow(read);
  }, [of]);
  return value;
}

/** A store kept in the browser between visits; unreadable or forbidden storage leaves it in memory. */
export function keptStore<T>(key: string, initial: T, valid: (value: unknown) => value is T): Store<T> {
  let first = initial;
  try {
    const text = localStorage.getItem(key);
    const value: unknown = text === null ? undefined : JSON.parse(text);
    if (valid(value)) first = value;
  } catch {
    // A browser may forbid storage to a page.
  }
  const kept = store(first);
  kept.follow(() => {
    try {
      localStorage.setItem(key, JSON.stringify(kept.get()));
    } catch {
      // As above.
    }
  });
  return kept;
}
