import { UsageError } from "../core/errors.ts";

/** Jobs on something that is there for one at a time, and is freed once: after `close`, when the last has ended. */
export class Turns {
  #last: Promise<unknown> = Promise.resolve();
  #begun = 0;
  #closed = false;

  constructor(
    /** For the error of whoever comes late: "the model", its folder. */
    readonly what: string,
    readonly where: string,
    readonly free: () => void,
  ) {}

  async run<T>(job: () => Promise<T>): Promise<T> {
    if (this.#closed) throw new UsageError(`${this.what} is closed`, this.where, "open it again");
    const before = this.#last;
    const done = Promise.withResolvers<void>();
    this.#last = done.promise;
    this.#begun++;
    try {
      await before;
      return await job();
    } finally {
      done.resolve();
      if (--this.#begun === 0 && this.#closed) this.free();
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#begun === 0) this.free();
  }
}
