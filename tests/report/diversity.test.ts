// Runs alone: it measures time.
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { Purpose, Random } from "../../src/core/rng.ts";
import { readDataset } from "../../src/io/jsonl.ts";
import { type Diversity, DiversityTracker, diversity } from "../../src/report/diversity.ts";
import { STORIES, templated, threeTemplates } from "./texts.ts";

const root = resolve(import.meta.dir, "../..");
const of = (texts: readonly string[], prompt: (i: number) => number | null = () => null): Diversity =>
  diversity(texts.map((text, i) => ({ text, prompt: prompt(i) })));

describe("healthy sets are not flagged", () => {
  test("stories by hand, and parts of them", () => {
    for (const texts of [STORIES, STORIES.slice(0, 9), STORIES.slice(12), [...STORIES].reverse()]) {
      const report = of(texts);
      expect(report).toMatchObject({ degenerate: false, reasons: [], unique_share: 1, template_share: 0 });
      expect(report.jaccard).toBeLessThan(0.2);
      expect(report.compression).toBeLessThan(3);
    }
  });

  test("paragraphs of documents in one style about one thing", () => {
    for (const file of ["README.md", "ARCHITECTURE.md"]) {
      const texts = readFileSync(join(root, file), "utf8")
        .split(/\n\n+/)
        .filter((text) => !/^[#|`]/.test(text) && text.split(/\s+/).length >= 12);
      expect(texts.length).toBeGreaterThan(5);
      expect(of(texts)).toMatchObject({ degenerate: false, reasons: [] });
    }
  });

  test("short answers to many questions: copies are to be expected", () => {
    const answers = readDataset(join(root, "src/recipe/arithmetic/eval.jsonl")).map(({ row }) =>
      String(row.answer),
    );
    const report = of(answers, (i) => i);
    expect(report.unique_share).toBeLessThan(0.5);
    expect(report).toMatchObject({ degenerate: false, reasons: [] });
  });

  test("several completions of each prompt that keep to its subject", () => {
    // A prompt's first words, then a sentence that nobody else says.
    const sentences = ["README.md", "ARCHITECTURE.md"].flatMap((file) =>
      readFileSync(join(root, file), "utf8")
        .split(/(?<=[.:;])\s+/)
        .filter((text) => text.split(/\s+/).length >= 8),
    );
    const texts = sentences
      .slice(0, 96)
      .map((text, i) => `${STORIES[Math.floor(i / 4)]!.split(" ").slice(0, 6).join(" ")} ${text}`);
    expect(texts.length).toBe(96);
    const report = of(texts, (i) => Math.floor(i / 4));
    expect(report.jaccard_within!).toBeGreaterThan(report.jaccard);
    expect(report).toMatchObject({ degenerate: false, unique_share: 1 });
  });

  test("too few to say, and none", () => {
    expect(of(["a b c d e f"])).toMatchObject({
      degenerate: false,
      unique_share: 1,
      jaccard: 0,
      jaccard_within: null,
    });
    expect(of(Array(5).fill(STORIES[0]!))).toMatchObject({
      degenerate: false,
      unique_share: 0.2,
      jaccard: 1,
    });
    expect(of([])).toMatchObject({ completions: 0, degenerate: false, unique_share: 1, mean_words: 0 });
  });
});

describe("degenerate sets are flagged, with the reason", () => {
  test("one template with other words in its slots: unique, dissimilar, and all the same", () => {
    for (const count of [8, 16, 64, 200]) {
      const report = of(templated(count));
      // What the older two limits see.
      expect(report.unique_share).toBe(1);
      expect(report.jaccard).toBeLessThan(0.7);
      expect(report.template_share).toBeGreaterThan(0.8);
      expect(report.reasons).toEqual([expect.stringMatching(/^\d+ % follow a template$/)]);
      expect(report.template).toMatch(/once upon a time there was a ‗.* named ‗ \. ‗ loved to ‗ in the/);
    }
  });

  test("three templates in turn; half templates among stories; not a quarter of them", () => {
    expect(of(threeTemplates(60)).reasons.join()).toContain("follow a template");
    const mixed = (stories: number, others: number) =>
      of([...STORIES.slice(0, stories), ...templated(others)]);
    expect(mixed(12, 20)).toMatchObject({ degenerate: true });
    expect(mixed(12, 20).template_share).toBeCloseTo(20 / 32, 1);
    expect(mixed(24, 6)).toMatchObject({ degenerate: false });
  });

  test("copies, near copies, loops, and one answer to everything", () => {
    const copies = Array.from({ length: 32 }, (_, i) => STORIES[i % 8]!);
    expect(of(copies).reasons.join()).toContain("25 % of the texts are unique");
    const near = Array.from({ length: 20 }, (_, i) => `${STORIES[0]} ${i}`);
    expect(of(near).reasons.join()).toMatch(/share \d\d % of their words/);
    const loops = STORIES.map((story) => `${story.split(" ").slice(0, 4).join(" ")} `.repeat(12));
    expect(of(loops).reasons.join()).toContain("repeats itself");
    expect(of(Array(16).fill("6"), (i) => i).reasons).toEqual(["one answer for 100 % of the prompts"]);
    // The same prompt may have one answer.
    expect(of(Array(16).fill("6"), () => 1).degenerate).toBe(false);
    expect(of(Array(16).fill(""), (i) => i).degenerate).toBe(true);
  });
});

describe("figures", () => {
  test("are what their definitions say", () => {
    const report = of(["a b c d e", "a b c d f", "x y", "x y"], (i) => (i < 2 ? 1 : 2));
    expect(report.unique_share).toBe(0.75);
    expect(report.top_share).toBe(0.5);
    expect(report.mean_words).toBe(3.5);
    // Of six pairs: 4/6, 1, and four without a common word.
    expect(report.jaccard).toBeCloseTo((4 / 6 + 1) / 6, 12);
    expect(report.jaccard_within).toBeCloseTo((4 / 6 + 1) / 2, 12);
    // abcd is shared, bcde and bcdf are not.
    expect(report.self_overlap).toBe(0.5);
    expect(report.type_token).toBeCloseTo(8 / 14, 12);
    expect(of(["a b c d a b c d"]).repetition).toBeCloseTo(1 / 5, 12);
    expect(of(["Ab, c", "aB  C"]).jaccard).toBe(1);
    expect(of(["日本語", "日本酒"]).jaccard).toBe(0.5);
  });

  test("a hundred thousand completions: counted exactly, measured on a sample, in little time", () => {
    const texts = templated(500);
    const tracker = new DiversityTracker();
    const begin = performance.now();
    for (let i = 0; i < 100_000; i++) tracker.add(`${texts[i % 500]} ${i % 50_000}`, i % 100);
    const added = performance.now() - begin;
    const report = tracker.report();
    expect(added).toBeLessThan(2000);
    expect(performance.now() - begin - added).toBeLessThan(1500);
    expect(report).toMatchObject({
      completions: 100_000,
      sampled: 256,
      unique_share: 0.5,
      template_share: 1,
    });
    const again = new DiversityTracker();
    for (let i = 0; i < 100_000; i++) again.add(`${texts[i % 500]} ${i % 50_000}`, i % 100);
    expect(again.report()).toEqual(report);
  });

  test("a sample of a large set says what the whole says", () => {
    const random = new Random(5, Purpose.data);
    const texts = Array.from({ length: 2000 }, () => {
      const word = () => STORIES[random.below(24)]!.split(" ")[random.below(12)] ?? "so";
      return Array.from({ length: 20 }, word).join(" ");
    });
    const [sampled, whole] = [
      of(texts),
      diversity(
        texts.map((text) => ({ text, prompt: null })),
        2000,
      ),
    ];
    expect(Math.abs(sampled.jaccard - whole.jaccard)).toBeLessThan(0.01);
    expect(whole.degenerate).toBe(false);
  });
});
