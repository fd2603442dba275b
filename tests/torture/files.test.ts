/** Every reader of files from elsewhere gets them broken: it gives a value or an error of ours, soon and in little memory. */
import { test } from "bun:test";
import { join } from "node:path";
import { fuzz } from "./fuzz.ts";
import { LONG_LIMIT, long } from "./ledger.ts";
import { SUBJECTS } from "./reader-cases.ts";

const SHORT_CASES = 100;

test.each(SUBJECTS)(
  "%s",
  async (subject) => {
    await fuzz(join(import.meta.dir, "reader-cases.ts"), subject, SHORT_CASES);
  },
  long ? LONG_LIMIT : 60_000,
);
