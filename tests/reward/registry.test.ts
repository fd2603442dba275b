import { describe, expect, test } from "bun:test";
import { z } from "zod";
import { exitCodeOf, RlvError, UsageError } from "../../src/core/errors.ts";
import type { Finish, Rollout } from "../../src/core/records.ts";
import { defineReward, RewardRegistry, scoreRollouts } from "../../src/reward/registry.ts";
import { ruleRegistry, withEosPenalty } from "../../src/reward/rules.ts";

interface Fixture {
  readonly fields?: Record<string, unknown>;
  readonly finish?: Finish;
  readonly index?: number;
  readonly tokens?: number;
}

function rollout(
  text: string,
  { fields = {}, finish = "eos", index = 3, tokens = 4 }: Fixture = {},
): Rollout {
  return {
    prompt: { index, text: "?", ids: Int32Array.of(1), fields },
    completion: 2,
    ids: new Int32Array(tokens),
    logprobs: new Float32Array(tokens),
    lse: null,
    entropies: null,
    text,
    finish,
  };
}

const context = { step: 1 };
const registry = ruleRegistry();

async function reward(name: string, params: Record<string, unknown>, given: Rollout): Promise<number | null> {
  return (await registry.bind(name, params)(given, context)).reward;
}

async function failure(work: () => unknown): Promise<RlvError> {
  try {
    await work();
  } catch (error) {
    expect(error).toBeInstanceOf(RlvError);
    return error as RlvError;
  }
  throw new Error("nothing was thrown");
}

describe("arithmetic", () => {
  const score = (text: string, answer: unknown, params = {}) =>
    reward("arithmetic", params, rollout(text, { fields: { answer } }));

  test("the last integer decides", async () => {
    expect(await score("2 + 3 = 5", "5")).toBe(1);
    expect(await score("5, or rather 6", "5")).toBe(0);
    expect(await score("nothing", "5")).toBe(0);
    expect(await score("3-10=\u22127", "-7")).toBe(1);
    expect(await score("-7", "7")).toBe(0);
    expect(await score("1,234", 1234)).toBe(1);
    expect(await score("It is 007.", "7")).toBe(1);
    expect(await score("12345678901234567890", "12345678901234567891")).toBe(0);
    expect(await score("12345678901234567891", "12345678901234567891")).toBe(1);
    expect(await score("72", "so 8 * 9 is\n#### 72")).toBe(1);
  });

  test("rewards are parameters", async () => {
    const params = { correct_reward: 2, wrong_reward: -0.5 };
    expect(await score("5", "5", params)).toBe(2);
    expect(await score("4", "5", params)).toBe(-0.5);
  });

  test("a dataset without the answer is a usage error that names the prompt", async () => {
    for (const answer of [undefined, null, "five", 2.5, 2 ** 60, {}]) {
      const error = await failure(() => score("5", answer));
      expect(error).toBeInstanceOf(UsageError);
      expect(error.message).toContain("prompt 3");
    }
  });
});

describe("rules", () => {
  test("exact_match", async () => {
    const given = rollout(" Caf\u00e9\n", { fields: { answer: "cafe\u0301" } });
    expect(await reward("exact_match", {}, given)).toBe(0);
    expect(await reward("exact_match", { ignore_case: true }, given)).toBe(1);
    expect(await reward("exact_match", { ignore_case: true, trim: false }, given)).toBe(0);
    expect(await reward("exact_match", { field: "n" }, rollout("7", { fields: { n: 7 } }))).toBe(1);
  });

  test("regex, the same verdict on every call", async () => {
    for (let i = 0; i < 3; i++) {
      expect(await reward("regex", { pattern: "^ha+ppy$", flags: "im" }, rollout("so\nHAAPPY"))).toBe(1);
    }
    expect(await reward("regex", { pattern: "x", miss_reward: -1 }, rollout("so"))).toBe(-1);
    expect((await failure(() => registry.bind("regex", { pattern: "(" }))).message).toContain("pattern");
    await failure(() => registry.bind("regex", { pattern: "a", flags: "g" }));
    await failure(() => registry.bind("regex", {}));
  });

  test("length in each unit, with a slope", async () => {
    const given = rollout("ab c\u{1F600}", { tokens: 10 });
    expect(await reward("length", { max: 9 }, given)).toBe(0);
    expect(await reward("length", { max: 9, slope: 4 }, given)).toBe(0.75);
    expect(await reward("length", { min: 12, slope: 4 }, given)).toBe(0.5);
    expect(await reward("length", { unit: "characters", min: 5, max: 5 }, given)).toBe(1);
    expect(await reward("length", { unit: "words", min: 2, max: 2 }, given)).toBe(1);
    await failure(() => registry.bind("length", { min: 3, max: 2 }));
  });

  test("format_tags", async () => {
    const good = "<think>a</think> <answer>7</answer>";
    const cases: [string, number, number][] = [
      [good, 1, 1],
      [`x${good}`, 1, 0],
      ["<answer>7</answer><think>a</think>", 0.5, 0],
      ["<think>a</think>", 0.5, 0],
      [`${good}<answer>8</answer>`, 0.5, 0],
      ["<think>a<answer>b</think></answer>", 0.5, 0],
      ["</think>a<think>", 0, 0],
      ["", 0, 0],
    ];
    for (const [text, share, strict] of cases) {
      expect(await reward("format_tags", {}, rollout(text))).toBe(share);
      expect(await reward("format_tags", { strict: true }, rollout(text))).toBe(strict);
    }
    await failure(() => registry.bind("format_tags", { tags: ["a", "a"] }));
  });

  test("eos penalty falls on completions that were cut off", async () => {
    const base = registry.bind("regex", { pattern: "a" });
    const scored = withEosPenalty(base, 0.75);
    expect(await scored(rollout("a"), context)).toEqual({ reward: 1, components: { regex: 1 } });
    const cut = await scored(rollout("a", { finish: "length" }), context);
    expect(cut).toEqual({ reward: 0.25, components: { regex: 1, eos_penalty: -0.75 } });
    expect((await scored(rollout("a", { finish: "stop" }), context)).reward).toBe(1);
  });
});

describe("registry", () => {
  const custom = (score: () => number | null) => {
    const own = ruleRegistry();
    own.register(
      defineReward({
        name: "custom",
        description: "for tests",
        parameters: z.object({ times: z.number().default(1) }),
        bind:
          ({ times }) =>
          () => {
            const value = score();
            return { reward: value === null ? null : value * times, components: {} };
          },
      }),
    );
    return own;
  };

  test("unknown names and parameters are usage errors that list what exists", async () => {
    expect((await failure(() => registry.get("arithmetics"))).message).toContain("arithmetic, exact_match");
    const error = await failure(() => registry.bind("arithmetic", { corect_reward: 1 }));
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).toContain("corect_reward");
    expect(error.message).toContain("correct_reward");
    expect((await failure(() => registry.bind("arithmetic", { correct_reward: "1" }))).message).toContain(
      "reward arithmetic.correct_reward",
    );
    await failure(() => registry.register(registry.get("regex")));
    expect(new RewardRegistry().names()).toEqual([]);
  });

  test("a reward that throws or is not finite fails with its name and the prompt", async () => {
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const score = custom(() => bad).bind("custom");
      const error = await failure(() =>
        scoreRollouts("custom", score, [rollout("x", { index: 41 })], context),
      );
      expect(error.message).toContain("reward custom");
      expect(error.message).toContain("prompt 41, completion 2");
      expect(exitCodeOf(error)).toBe(1);
    }
    const thrower = custom(() => {
      throw new TypeError("boom\nsecond line");
    });
    const error = await failure(() =>
      scoreRollouts("custom", thrower.bind("custom"), [rollout("x")], context),
    );
    expect(error.message).toBe("reward custom failed: prompt 3, completion 2: boom");
    const parts = thrower.combine([{ name: "custom" }]);
    const inner = await failure(() => scoreRollouts("sum", parts, [rollout("x")], context));
    expect(inner.message).toContain("reward custom failed");
    const nan = { reward: 1, components: { part: Number.NaN } };
    const hidden = await failure(() => scoreRollouts("c", () => nan, [rollout("x")], context));
    expect(hidden.message).toContain("as part");
  });

  test("what is no result at all is refused, and nothing is scored after a failure", async () => {
    let calls = 0;
    const broken = async () => {
      if (++calls === 2) return 1 as unknown as { reward: number; components: Record<string, number> };
      await Bun.sleep(1);
      return { reward: 1, components: {} };
    };
    const rollouts = Array.from({ length: 20 }, (_, index) => rollout("x", { index }));
    const error = await failure(() => scoreRollouts("broken", broken, rollouts, context, 2));
    expect(error.message).toContain("reward broken returned 1: prompt 1, completion 2");
    await Bun.sleep(30);
    expect(calls).toBe(2);
  });

  test("bad data stays a usage error (exit code 2)", async () => {
    const error = await failure(() =>
      scoreRollouts("arithmetic", registry.bind("arithmetic"), [rollout("5", { index: 7 })], context),
    );
    expect(exitCodeOf(error)).toBe(2);
    expect(error.message).toContain("prompt 7");
  });

  test("combined rewards sum and decompose; null means unscorable", async () => {
    const own = custom(() => null);
    const both = own.combine([
      { name: "regex", params: { pattern: "a" }, weight: 2 },
      { name: "length", params: { max: 4 }, weight: 0.5 },
      { name: "custom" },
    ]);
    expect(await both(rollout("a"), context)).toEqual({ reward: 2.5, components: { regex: 2, length: 0.5 } });
    const [only] = await scoreRollouts("sum", own.combine([{ name: "custom" }]), [rollout("a")], context);
    expect(only!.reward).toBeNaN();
    expect(only!.components).toEqual({});
    await failure(() => own.combine([]));
    await failure(() => own.combine([{ name: "regex" }, { name: "regex" }]));
  });

  test("results keep the order of the rollouts at any concurrency", async () => {
    const rollouts = Array.from({ length: 9 }, (_, i) => rollout(String(i), { index: i }));
    let active = 0;
    let most = 0;
    const slow = async ({ prompt }: Rollout) => {
      most = Math.max(most, ++active);
      await Bun.sleep(prompt.index % 2 ? 1 : 4);
      active--;
      return { reward: prompt.index, components: {} };
    };
    const scored = await scoreRollouts("slow", slow, rollouts, context, 4);
    expect(scored.map((s) => s.reward)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
    expect(most).toBe(4);
    expect(await scoreRollouts("slow", slow, [], context, 4)).toEqual([]);
  });
});
