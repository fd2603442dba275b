import { appendFileSync, mkdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { stateDir } from "../core/env.ts";
import { writeFileAtomic } from "../io/atomic.ts";

/** Messages kept for the arrow keys; the file is cut back to them once it has twice as many. */
const MOST = 1000;

/** Messages of earlier chats, one JSON string a line in the state folder. A history that cannot be kept harms nothing. */
export class History {
  readonly path: string;
  readonly #entries: string[] = [];

  /** @param complain told once, should the file not be writable */
  constructor(
    readonly complain: (line: string) => void,
    path?: string,
  ) {
    this.path = path ?? join(stateDir(), "chat_history.jsonl");
    this.#entries = read(this.path);
    if (this.#entries.length > 2 * MOST)
      this.#keep(() => writeFileAtomic(this.path, lines(this.#entries.slice(-MOST))));
  }

  /** The newest first, as readline takes them; line breaks are shown as spaces. */
  get lines(): string[] {
    return this.#entries
      .slice(-MOST)
      .reverse()
      .map((entry) => entry.replaceAll("\n", " "));
  }

  add(entry: string): void {
    if (entry === this.#entries.at(-1)) return;
    this.#entries.push(entry);
    this.#keep(() => {
      mkdirSync(dirname(this.path), { recursive: true, mode: 0o700 });
      appendFileSync(this.path, lines([entry]), { mode: 0o600 });
    });
  }

  #complained = false;
  #keep(write: () => void): void {
    try {
      write();
    } catch (error) {
      if (!this.#complained)
        this.complain(`the history is not kept: ${this.path}: ${(error as Error).message}`);
      this.#complained = true;
    }
  }
}

const lines = (entries: readonly string[]) => entries.map((entry) => `${JSON.stringify(entry)}\n`).join("");

function read(path: string): string[] {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch {
    return [];
  }
  return text.split("\n").flatMap((line) => {
    try {
      const entry: unknown = JSON.parse(line);
      return typeof entry === "string" ? [entry] : [];
    } catch {
      // A line that another chat was writing when the machine went down.
      return [];
    }
  });
}
