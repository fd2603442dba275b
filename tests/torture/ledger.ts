/** What was tried and what was lost, by kind of fault: the table of the long form. */

import { expect } from "bun:test";
import { appendFileSync } from "node:fs";

/** RLV_TORTURE: rounds of the long form (`scripts/test torture`); the ordinary suite makes one short one. */
export const ROUNDS = Number(process.env.RLV_TORTURE ?? 0);
export const long = ROUNDS > 0;
/** Milliseconds of a test of the long form, beside others on a busy machine. */
export const LONG_LIMIT = 4 * 3_600_000;
/** The ordinary suite repeats itself; the long form looks elsewhere every time. */
export const SEED = long ? Date.now() % 2 ** 31 : 20261122;

/** Counts one fault; `lost` says what it cost, null if nothing. A loss fails the test, at its end. */
export class Ledger {
  readonly #lost: string[] = [];
  tried = 0;
  constructor(readonly fault: string) {}

  enter(what: string, lost: string | null): void {
    this.tried += 1;
    if (lost !== null) this.#lost.push(`${what}: ${lost}`);
  }

  /** Writes the line of the table and fails where something was lost or nothing was tried. */
  close(): void {
    const path = process.env.RLV_TORTURE_REPORT;
    if (path !== undefined)
      appendFileSync(
        path,
        `${JSON.stringify({ fault: this.fault, tried: this.tried, lost: this.#lost.length })}\n`,
      );
    expect(this.#lost).toEqual([]);
    expect(this.tried).toBeGreaterThan(0);
  }
}
