import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { diversity } from "../../src/report/diversity.ts";
import { diversityOfStep, diversitySteps } from "../../src/report/diversity-steps.ts";

test("figures of a step are those of its completions, whatever lies in other steps", () => {
  const db = new Database(":memory:");
  db.run("CREATE TABLE rollouts (step INTEGER, prompt_index INTEGER, completion TEXT)");
  const insert = db.query("INSERT INTO rollouts VALUES (?, ?, ?)");
  const texts = Array.from({ length: 12 }, (_, i) => ({
    text: `the ${["cat", "dog", "owl"][i % 3]} of house ${i} sleeps ${i % 2 ? "well" : "badly"}`,
    prompt: i % 4,
  }));
  for (const { text, prompt } of texts) insert.run(3, prompt, text);
  for (let i = 0; i < 20; i++) insert.run(9, 0, "again and again the same words come");
  expect(diversitySteps(db, "rollouts", 10)).toEqual([
    { step: 3, rows: 12 },
    { step: 9, rows: 20 },
  ]);
  expect(diversityOfStep(db, "rollouts", 3)).toEqual({ step: 3, ...diversity(texts) });
  const same = diversityOfStep(db, "rollouts", 9);
  expect(same.unique_share).toBe(1 / 20);
  expect(same.degenerate).toBe(true);
  db.close();
});
