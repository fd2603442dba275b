/** A program that answers JSON lines: one object a line in, one a line out with the same `id`, in any order. */
import type { Subprocess } from "bun";

/** How long a program that is no longer wanted has to end by itself. */
const GOODBYE_MS = 500;
/** Characters of an answer. */
const LONGEST = 2 ** 26;
/** Of a line that is not understood, what an error shows. */
const SHOWN = 120;

export type Answer = Readonly<Record<string, unknown>> & { readonly id: number };

interface Waiting {
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: Error) => void;
}

export class LineProgram {
  readonly #child: Subprocess<"pipe", "pipe", "inherit">;
  readonly #waiting = new Map<number, Waiting>();
  #next = 1;
  /** Why no further answer will come. */
  #failure: Error | null = null;
  #closing = false;

  /** What it writes to stderr appears on ours. Throws where it cannot be started. */
  constructor(argv: readonly string[], cwd?: string) {
    this.#child = Bun.spawn([...argv], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "inherit",
      // Ctrl-C in a terminal is for the run, which finishes its step first.
      detached: true,
      ...(cwd === undefined ? {} : { cwd }),
    });
    void this.#read();
  }

  /** The answer to one object; rejects when the program ends or says what is no answer. */
  async ask(question: Readonly<Record<string, unknown>>): Promise<Answer> {
    if (this.#failure) throw this.#failure;
    const id = this.#next++;
    const { promise, resolve, reject } = Promise.withResolvers<Answer>();
    this.#waiting.set(id, { resolve, reject });
    // JSON has no integers beyond 2^53: they are text.
    const line = JSON.stringify({ id, ...question }, (_, value) =>
      typeof value === "bigint" ? String(value) : value,
    );
    try {
      this.#child.stdin.write(`${line}\n`);
      await this.#child.stdin.flush();
    } catch {
      // A closed pipe: the program has ended, which its reader reports.
    }
    return promise;
  }

  async #read(): Promise<void> {
    const decoder = new TextDecoder();
    let text = "";
    try {
      for await (const piece of this.#child.stdout) {
        text += decoder.decode(piece, { stream: true });
        for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n")) {
          this.#take(text.slice(0, end));
          text = text.slice(end + 1);
        }
        if (text.length > LONGEST)
          throw new Error(`the program wrote a line of more than ${LONGEST} characters`);
      }
      if (text.trim() !== "") this.#take(text);
    } catch (error) {
      this.#fail(error as Error);
    }
    await this.#child.exited;
    const { exitCode, signalCode } = this.#child;
    const how = signalCode === null ? `with exit code ${exitCode}` : `by ${signalCode}`;
    this.#fail(new Error(`the program ended ${how} before it answered`));
  }

  #take(line: string): void {
    if (line.trim() === "" || this.#failure) return;
    let answer: unknown;
    try {
      answer = JSON.parse(line);
    } catch {
      this.#fail(new Error(`the program wrote what is no JSON: ${JSON.stringify(line.slice(0, SHOWN))}`));
      return;
    }
    const id = typeof answer === "object" && answer !== null ? (answer as { id?: unknown }).id : undefined;
    const waiting = typeof id === "number" ? this.#waiting.get(id) : undefined;
    if (!waiting) {
      this.#fail(new Error(`the program answered what was not asked: ${line.slice(0, SHOWN)}`));
      return;
    }
    this.#waiting.delete(id as number);
    waiting.resolve(answer as Answer);
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    for (const { reject } of this.#waiting.values()) reject(this.#failure);
    this.#waiting.clear();
  }

  /** Ends the program and whatever it started. */
  close(): void {
    if (this.#closing) return;
    this.#closing = true;
    try {
      void this.#child.stdin.end();
    } catch {
      // It has ended already.
    }
    this.#fail(new Error("the program was closed"));
    // With a stdin that ended it may leave by itself; the group is killed in any case, at the latest at our own end.
    const kill = () => {
      try {
        process.kill(-this.#child.pid, "SIGKILL");
      } catch {
        // Nobody is left.
      }
    };
    process.once("exit", kill);
    setTimeout(kill, GOODBYE_MS).unref();
    this.#child.unref();
  }
}
