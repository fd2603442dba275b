/** Drives a program through a pseudo-terminal, as a person at a keyboard would. */
import { resolve } from "node:path";

const main = resolve(import.meta.dir, "../src/cli/main.ts");

/** What keys send. */
export const KEYS = {
  enter: "\r",
  escape: "\x1b",
  up: "\x1b[A",
  down: "\x1b[B",
  right: "\x1b[C",
  left: "\x1b[D",
  tab: "\t",
  backspace: "\x7f",
  ctrlC: "\x03",
  ctrlD: "\x04",
} as const;

export interface PtyOptions {
  readonly cols?: number;
  readonly rows?: number;
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
}

/** Text without the sequences that move the cursor, colour or clear; carriage returns are gone too. */
export function plain(text: string): string {
  return (
    Bun.stripANSI(text)
      // Those that stripANSI keeps: key modes and the like.
      // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is being removed
      .replace(/\x1b[=>78cDEHM]/g, "")
      .replaceAll("\r", "")
  );
}

const has = (text: string, wanted: string | RegExp): boolean =>
  typeof wanted === "string" ? text.includes(wanted) : text.search(wanted) >= 0;

/** A program with a pseudo-terminal for stdin, stdout and stderr. Killed at the end of a `using` scope. */
export class Pty implements AsyncDisposable {
  #raw = "";
  /** Where in `#raw` the next `waitFor` begins to look. */
  #seen = 0;
  #wake: () => void = () => {};
  readonly #child: Bun.Subprocess;
  readonly #decoder = new TextDecoder();

  constructor(argv: readonly string[], options: PtyOptions = {}) {
    this.#child = Bun.spawn([...argv], {
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      env: { ...process.env, TERM: "xterm-256color", ...options.env },
      terminal: {
        cols: options.cols ?? 100,
        rows: options.rows ?? 30,
        data: (_terminal, data) => {
          this.#raw += this.#decoder.decode(data, { stream: true });
          this.#wake();
        },
      },
    });
    void this.#child.exited.then(() => this.#wake());
  }

  /** `rlv ARGS` from this checkout. */
  static rlv(args: readonly string[], options: PtyOptions = {}): Pty {
    return new Pty([process.execPath, main, ...args], options);
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Everything the program has written, escape sequences included. */
  get raw(): string {
    return this.#raw;
  }

  /** Everything the program has written, as text. */
  get text(): string {
    return plain(this.#raw);
  }

  /** Types: text, or KEYS. */
  write(text: string): void {
    this.#child.terminal!.write(text);
  }

  resize(cols: number, rows: number): void {
    this.#child.terminal!.resize(cols, rows);
  }

  /**
   * Waits until what was written since the last wait has `wanted`, and returns the text up to its end. Fails with
   * the screen's text if it does not come, or if the program ends before.
   */
  async waitFor(wanted: string | RegExp, timeoutMs = 20_000): Promise<string> {
    const end = Date.now() + timeoutMs;
    for (;;) {
      const text = plain(this.#raw.slice(this.#seen));
      if (has(text, wanted)) return this.#take(wanted);
      const ended = this.#child.exitCode !== null || this.#child.signalCode !== null;
      if (ended || Date.now() > end)
        throw new Error(
          `${ended ? "ended" : "timed out"} without ${String(wanted)} in:\n${text}\n--- before:\n${plain(this.#raw.slice(0, this.#seen)).slice(-2000)}`,
        );
      await Promise.race([
        new Promise<void>((wake) => {
          this.#wake = wake;
        }),
        Bun.sleep(Math.max(1, end - Date.now())),
      ]);
      // The last bytes may arrive after the exit.
      if (this.#child.exitCode !== null) await Bun.sleep(50);
    }
  }

  /** Moves on to the end of what was waited for: what came behind it is for the next wait. */
  #take(wanted: string | RegExp): string {
    let [low, high] = [this.#seen, this.#raw.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (has(plain(this.#raw.slice(this.#seen, middle)), wanted)) high = middle;
      else low = middle + 1;
    }
    const text = plain(this.#raw.slice(this.#seen, low));
    this.#seen = low;
    return text;
  }

  /** Waits for the end: the exit code, or 128 + signal. */
  async exit(timeoutMs = 20_000): Promise<number> {
    const code = await Promise.race([this.#child.exited, Bun.sleep(timeoutMs).then(() => null)]);
    if (code === null) throw new Error(`still running after ${timeoutMs} ms:\n${this.text.slice(-2000)}`);
    await Bun.sleep(20);
    return code;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode === null) this.#child.kill("SIGKILL");
    await this.#child.exited;
    this.#child.terminal?.close();
  }
}
