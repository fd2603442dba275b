import { expect, test } from "bun:test";
import { resolve } from "node:path";
import { UsageError } from "../../src/core/errors.ts";
import {
  fill,
  parseRubric,
  preambleText,
  readRubric,
  reordered,
  rubricReward,
} from "../../src/reward/rubric.ts";
import { RUBRIC } from "../run/judge-fixture.ts";

const shipped = resolve(import.meta.dir, "../../src/recipe/values/rubric.yaml");

test("the rubric that ships has its three criteria and a place for everything", () => {
  const rubric = readRubric(shipped);
  expect(rubric.criteria.map(({ name }) => name)).toEqual([
    "intellectual_curiosity",
    "nonsense_detection",
    "claim_scrutiny",
  ]);
  expect(rubric.scale).toEqual({ min: 1, max: 5 });
  for (const { anchors, weight } of rubric.criteria) {
    expect(new Set(anchors).size).toBe(5);
    expect(weight).toBe(1);
  }
  const text = preambleText(rubric);
  expect(text).not.toMatch(/\{[a-z]+\}/);
  for (const { title, anchors } of rubric.criteria)
    for (const part of [title, ...anchors]) expect(text).toContain(part);
});

test("scores become one number in [0, 1] by weight", () => {
  const rubric = parseRubric(RUBRIC, "r.yaml");
  expect(rubricReward(rubric, { depth: 5, care: 5, wit: 5 }).reward).toBeCloseTo(1, 15);
  expect(rubricReward(rubric, { depth: 1, care: 1, wit: 1 }).reward).toBe(0);
  const { reward, components } = rubricReward(rubric, { depth: 3, care: 2, wit: 1 });
  expect(components).toEqual({ depth: 0.25, care: 0.0625, wit: 0 });
  expect(reward).toBeCloseTo(0.3125, 15);
  // One that cannot be read leaves no sum, and the others as they are.
  expect(rubricReward(rubric, { depth: 3, care: null, wit: 1 })).toEqual({
    reward: null,
    components: { depth: 0.25, wit: 0 },
  });
});

test("placeholders are filled once, and what fills them is not read again", () => {
  expect(fill("{a}{b} {c}", { a: "{b}", b: 2 })).toBe("{b}2 {c}");
  const turned = reordered(parseRubric(RUBRIC, "r"), [2, 0, 1]);
  expect(turned.criteria.map(({ name }) => name)).toEqual(["wit", "depth", "care"]);
});

test.each([
  ["criteria: [", "not valid YAML"],
  ["[]", "the rubric: "],
  [RUBRIC.replace("criteria:", "criterias:"), "criteri"],
  [RUBRIC.replace("  - name: care", "  - name: depth"), "criteria[1].name: two criteria are called depth"],
  [RUBRIC.replace("name: care", "name: Care!"), "criteria[1].name: a name is of lower-case letters"],
  [RUBRIC.replace("5: all}", "6: all}"), "criteria[0].anchors: says nothing for 5 of 1 to 5"],
  [RUBRIC.replace("5: all}", "5: all, 6: more}"), "criteria[0].anchors.6: is outside the scale 1 to 5"],
  [RUBRIC.replace("weight: 2", "weight: -2"), "criteria[0].weight: "],
  [RUBRIC.replace("weight: 2", "weigth: 2"), "criteria[0]: "],
  [RUBRIC.replace("{criteria}", ""), "template.preamble: needs {criteria}"],
  [RUBRIC.replace("{response}", "{respond}"), "template.conversation: has no {respond}"],
  [
    RUBRIC.replace("Q: {prompt}\\nA: {response}", "A: {response} Q: {prompt}"),
    "template.conversation: needs {prompt} and behind it {response}",
  ],
  [RUBRIC.replace('answer: "{title}: "', 'answer: ""'), "question or answer must name the criterion"],
  [`scale: {min: 3, max: 3}\n${RUBRIC}`, "scale.max: max 3 must exceed min 3"],
  [`scale: {min: 1, max: 10}\n${RUBRIC}`, "scale.max: "],
])("a rubric with a fault is refused by file, key and remedy (%#)", (text, message) => {
  let error: unknown;
  try {
    parseRubric(text, "mine.yaml");
  } catch (caught) {
    error = caught;
  }
  expect(error).toBeInstanceOf(UsageError);
  expect((error as Error).message).toContain(message);
  expect((error as Error).message).toContain("mine.yaml");
});

test("a file that is not there, and one that is no text", () => {
  expect(() => readRubric("/nowhere/rubric.yaml")).toThrow("the rubric cannot be read (ENOENT)");
});
