/** What was tried and what was lost, by kind of fault: the table of the long form. */

import { expect } from "bun:test";
import { appendFileSync } from "node:fs";
import { jsonLines } from "../../src/io/jsonl.ts";

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
    if (lost === null) return;
    this.#lost.push(`${what}: ${lost}`);
    // At once: a long form that is stopped has said what it lost.
    this.#report({ lost: 1, what, why: lost });
  }

  #report(row: object): void {
    const path = process.env.RLV_TORTURE_REPORT;
    if (path !== undefined) appendFileSync(path, jsonLines([{ fault: this.fault, ...row }]));
  }

  /** Writes the line of the table and fails where something was lost or nothing was tried. */
  close(): void {
    this.#report({ tried: this.tried });
    expect(this.#lost).toEqual([]);
    expect(this.tried).toBeGreaterThan(0);
  }
}
