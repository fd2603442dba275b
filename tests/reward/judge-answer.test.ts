import { expect, test } from "bun:test";
import { parseScore } from "../../src/reward/judge-answer.ts";

const scale = { min: 1, max: 5 };

test.each([
  ["4", 4],
  [" 4", 4],
  ["4\n", 4],
  ["4.", 4],
  ["4, because it asks back", 4],
  ["4.0", 4],
  ["4,0", 4],
  ["4/5", 4],
  ["4 / 5", 4],
  ["4 out of 5", 4],
  ["four out of five", 4],
  ["**4**", 4],
  ["**4**/5", 4],
  ["__4__", 4],
  ["`4`", 4],
  ['"4"', 4],
  ["(4)", 4],
  ["[4]", 4],
  ["\\boxed{4}", 4],
  ["four", 4],
  ["Four.", 4],
  ["FIVE", 5],
  ["Score: 4", 4],
  ["score:4", 4],
  ["Score = 4", 4],
  ["Score: 4/5", 4],
  ["**Score:** 4", 4],
  ["Rating: five", 5],
  ["a rating of 2", 2],
  ["The score is 3.", 3],
  ["My answer is: 1", 1],
  ["I would give it a 4.", 4],
  ["I give this a score of 2", 2],
  ["The answer raises 2 points. Score: 4", 4],
  ["4 because it names 2 flaws", 4],
  ["It is a 4", 4],
  ["<think>maybe 2</think>\n\n4", 4],
  ["<score>4</score>", 4],
  ["４", 4],
  ["on a scale of 1 to 5, 4", 4],
  ["4 (scale 1-5)", 4],
  ["4 on a scale from 1 to 5", 4],
  ["1", 1],
  ["5", 5],
  ["5/5", 5],
  ["1/5", 1],
  ["", null],
  ["   ", null],
  ["none", null],
  ["I cannot say", null],
  ["0", null],
  ["6", null],
  ["10", null],
  ["45", null],
  ["4.5", null],
  ["4.5/5", null],
  ["-3", null],
  ["8/10", null],
  ["3 or 4", null],
  ["3-4", null],
  ["3–4", null],
  ["between 3 and 4", null],
  ["Score: 3. Score: 4", null],
  ["2/5 and 3/5", null],
  ["1 to 5", null],
  ["1-5", null],
  ["someone", null],
  ["fourteen", null],
  ["4th", null],
  ["v4", null],
] as const)("%j is %p", (text, score) => {
  expect(parseScore(text, scale)).toBe(score);
});

test("another scale has other values", () => {
  expect(parseScore("0", { min: 0, max: 9 })).toBe(0);
  expect(parseScore("9/9", { min: 0, max: 9 })).toBe(9);
  expect(parseScore("4/5", { min: 0, max: 9 })).toBe(null);
  expect(parseScore("10", { min: 0, max: 9 })).toBe(null);
});

test("what is no text of a judge does not throw", () => {
  for (const text of ["\u0000", "((((", "/".repeat(5000), "1 ".repeat(5000), "\ud800", "$$$", "----4----"])
    expect([null, 1, 4]).toContain(parseScore(text, scale));
});
