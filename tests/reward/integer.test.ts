import { expect, test } from "bun:test";
import fc from "fast-check";
import { lastInteger } from "../../src/reward/integer.ts";

const table: [string, bigint | null][] = [
  ["5", 5n],
  ["The answer is 7.", 7n],
  ["3 + 4 = 7, I think 8", 8n],
  ["-7", -7n],
  ["= -7.", -7n],
  ["(-7)", -7n],
  ["+12", 12n],
  ["-0", 0n],
  ["007", 7n],
  ["answer=-42!", -42n],
  ["x5", 5n],
  ["\u22127", -7n],
  ["is \u20137", -7n],
  ["\uFF0D7", -7n],
  ["10-3", 3n],
  ["10 - 3", 3n],
  ["10 -3", -3n],
  ["10\u22123", 3n],
  ["(2)-3", 3n],
  ["day-3", 3n],
  ["--5", -5n],
  ["1,234", 1234n],
  ["-1,234,567.", -1234567n],
  ["1'234'567", 1234567n],
  ["1\u202F234", 1234n],
  ["1\u00A0234", 1234n],
  ["1 234", 234n],
  ["1,2,3", 3n],
  ["1,23", 23n],
  ["12,3456", 3456n],
  ["1234,567", 567n],
  ["1,234,56", 56n],
  ["1,234'567", 567n],
  ["5.0", 5n],
  ["1,234.00", 1234n],
  ["3.14", null],
  ["7 or 3.14", 7n],
  ["version 1.2.3", null],
  ["1e5", null],
  ["2 1e-5", 2n],
  [".5", null],
  ["is .5", null],
  ["Done.5", 5n],
  ["...5", 5n],
  ["5...", 5n],
  ["", null],
  ["no number", null],
  ["-", null],
  ["1/2", 2n],
  ["99999999999999999999999999999999", 99999999999999999999999999999999n],
  ["<answer>-17</answer>", -17n],
  ["72 ####", 72n],
];

for (const [text, want] of table) {
  test(`last integer of ${JSON.stringify(text)}`, () => expect(lastInteger(text)).toBe(want));
}

test("finds any integer however it is written", () => {
  const before = fc.constantFrom("", "so ", "= ", "1 + 2 = ", "(", "\n");
  const after = fc.constantFrom("", ".", "!", " apples", ")", "\n", ".\n");
  fc.assert(
    fc.property(fc.bigInt(), fc.boolean(), before, after, (value, grouped, head, tail) => {
      const text = grouped ? value.toLocaleString("en-US") : String(value);
      expect(lastInteger(head + text + tail)).toBe(value);
    }),
    { numRuns: 300 },
  );
});

test("linear time on long runs of digits and signs", () => {
  const started = performance.now();
  expect(lastInteger(`${"9".repeat(20_000)}`)).not.toBeNull();
  expect(lastInteger(`${"1,".repeat(20_000)}`)).toBe(1n);
  expect(lastInteger(`${"1,234".repeat(10_000)}`)).not.toBeNull();
  expect(lastInteger(`${"-".repeat(20_000)}`)).toBeNull();
  expect(lastInteger(`${".1".repeat(20_000)}`)).toBeNull();
  expect(performance.now() - started).toBeLessThan(2000);
});
