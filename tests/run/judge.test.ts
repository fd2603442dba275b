/** A model that judges by a rubric: both readings, whatever else is judged with it, and what it costs in tokens. */
import { describe, expect, test } from "bun:test";
import { Purpose, Random } from "../../src/core/rng.ts";
import { Dtype } from "../../src/ops/define.ts";
import { type Conversation, readingOf } from "../../src/run/judge.ts";
import { promptText, responseText } from "../../src/run/judge-prompt.ts";
import { plainJudgements, TinyJudge } from "./judge-fixture.ts";

const WORDS = ["why", "the", "sea", "is", "4", "not", "blue,", "and", "Judge", "\n", "<|end|>", "é", "?"];

function conversations(random: Random, groups: number, size: number): Conversation[] {
  const words = (n: number) => Array.from({ length: n }, () => WORDS[random.below(WORDS.length)]!).join(" ");
  return Array.from({ length: groups }, () => words(1 + random.below(5))).flatMap((prompt) =>
    Array.from({ length: size }, () => ({ prompt, response: words(random.below(9)) })),
  );
}

describe.each([
  ["float32", Dtype.f32],
  ["bfloat16", Dtype.bf16],
] as const)("%s", (_name, dtype) => {
  test("judgements are those of every sequence by itself, bit for bit, in any company", async () => {
    using world = new TinyJudge({ dtype });
    const { model, memory } = world.tiny;
    const random = new Random(7, Purpose.data);
    const judge = world.judge();
    const seen = new Set<string>();
    for (let round = 0; round < 4; round++) {
      const asked = conversations(random, 1 + round, 1 + random.below(6));
      const verdicts = await judge.judge(asked);
      for (const [i, conversation] of asked.entries()) {
        const plain = plainJudgements(memory, model, world.tokenizer, world.rubric, conversation, 4);
        expect(verdicts[i]).toEqual({ cut: false, criteria: plain });
        for (const { said } of Object.values(plain)) seen.add(said);
      }
      // Alone, backwards, and in small passes.
      const alone = await judge.judge([asked[0]!]);
      expect(alone[0]).toEqual(verdicts[0]!);
      expect(await judge.judge([...asked].reverse())).toEqual([...verdicts].reverse());
      expect(await world.judge({ budget: 1 }).judge(asked)).toEqual(verdicts);
    }
    expect(seen.size).toBeGreaterThan(1);
  }, 120_000);
});

test("the number of threads changes nothing", async () => {
  const asked = conversations(new Random(3, Purpose.data), 2, 3);
  const verdicts = await Promise.all(
    [1, 2, 3].map(async (threads) => {
      using world = new TinyJudge({}, threads);
      return await world.judge().judge(asked);
    }),
  );
  expect(verdicts[1]).toEqual(verdicts[0]!);
  expect(verdicts[2]).toEqual(verdicts[0]!);
});

test("everything is encoded once: the preamble a run, a prompt for its responses, a response for its criteria", async () => {
  using world = new TinyJudge();
  const judge = world.judge({ budget: 4000, maxNewTokens: 1 });
  const { frame, counts } = judge;
  const asked = conversations(new Random(1, Purpose.data), 2, 8);
  await judge.judge(asked);
  const prompts = [...new Set(asked.map(({ prompt }) => prompt))];
  const tokens = (texts: readonly string[], ids: (text: string) => Int32Array) =>
    texts.reduce((sum, text) => sum + ids(text).length, 0);
  const own = frame.own.reduce((sum, ids) => sum + ids.length, 0);
  expect(counts).toEqual({
    preamble: frame.preamble.length,
    prompts: tokens(prompts, frame.promptIds),
    responses: tokens(
      asked.map(({ response }) => response),
      frame.responseIds,
    ),
    questions: 16 * (frame.shared.length + own),
    decoded: 0,
    headRows: 16 * 3,
  });
  // Criteria begin to differ at their titles alone.
  expect(world.tokenizer.decode(frame.shared)).toBe("\nScores?<|end|>assistant\n<think></think>");
  await judge.judge(asked);
  expect(counts.preamble).toBe(frame.preamble.length);
  expect(counts.prompts).toBe(2 * tokens(prompts, frame.promptIds));
  // Weights that change are asked anew.
  const changing = world.judge({}, false);
  await changing.judge(asked.slice(0, 2));
  await changing.judge(asked.slice(0, 2));
  expect(changing.counts.preamble).toBe(2 * frame.preamble.length);
  expect(changing.store.freePages).toBe(changing.store.pages);
});

test("a long response is cut and says so; a long prompt is refused", async () => {
  using world = new TinyJudge();
  const judge = world.judge({ maxResponseTokens: 10, maxPromptTokens: 20 });
  const [long, short] = await judge.judge([
    { prompt: "a", response: "why not ".repeat(9) },
    { prompt: "a", response: "why" },
  ]);
  expect([long!.cut, short!.cut]).toEqual([true, false]);
  const ids = world.tokenizer.encode("why not ".repeat(9)).slice(0, 10);
  const cut = await judge.judge([{ prompt: "a", response: world.tokenizer.decode(ids) }]);
  expect(long!.criteria).toEqual(cut[0]!.criteria);
  expect(judge.judge([{ prompt: "long ".repeat(30), response: "" }])).rejects.toThrow(
    /a prompt of \d+ tokens is longer than the judge's 20/,
  );
});

test("text that spells a special token stays text", () => {
  using world = new TinyJudge();
  const { frame } = world.judge();
  const end = world.tokenizer.eosId!;
  for (const text of ["<|end|>", "a<|end|><|end|>b", "<|end<|end|>|>"]) {
    expect([...frame.responseIds(text)]).not.toContain(end);
    expect([...frame.promptIds(text)]).not.toContain(end);
    expect(world.tokenizer.decode(frame.responseIds(text))).toBe(text);
  }
  expect([...frame.preamble]).toContain(end);
});

test("the expected score is the mean of the scale under its own tokens", () => {
  const { probabilities, expected, mass } = readingOf([[-3], [-2, -9], [-1], [-4], [-30]], 1);
  const weights = [Math.exp(-3), Math.exp(-2) + Math.exp(-9), Math.exp(-1), Math.exp(-4), Math.exp(-30)];
  const total = weights.reduce((a, b) => a + b, 0);
  for (const [i, weight] of weights.entries()) expect(probabilities[i]).toBeCloseTo(weight / total, 14);
  expect(mass).toBeCloseTo(total, 14);
  expect(expected).toBeCloseTo(
    weights.reduce((sum, w, i) => sum + (w / total) * (i + 1), 0),
    12,
  );
});

test("what a judge reads of prompts and completions", () => {
  const prompt = (fields: Record<string, unknown>) =>
    promptText({ index: 0, text: "rendered", ids: new Int32Array(0), fields });
  expect(prompt({ prompt: "Why?" })).toBe("Why?");
  expect(prompt({ messages: [{ role: "user", content: "Why?" }] })).toBe("Why?");
  expect(
    prompt({
      messages: [
        { role: "user", content: "Hi" },
        { role: "assistant", content: "Yes?" },
        { role: "user", content: "Why?" },
      ],
    }),
  ).toBe("Human: Hi\n\nAssistant: Yes?\n\nHuman: Why?");
  expect(prompt({ prompt_ids: [1] })).toBe("rendered");
  expect(responseText("<think>a\nb</think>\n\n Four. ")).toBe("Four.");
  expect(responseText("<think>never ends")).toBe("");
  expect(responseText("Yes <think>so")).toBe("Yes");
});
