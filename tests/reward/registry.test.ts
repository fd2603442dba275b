import { describe, expect, test } from "bun:test";
import { z } from "zod";
import { exitCodeOf, Interrupted, RlvError, UsageError } from "../../src/core/errors.ts";
import type { Finish, Rollout } from "../../src/core/records.ts";
import { REWARDS } from "../../src/reward/all.ts";
import {
  type BoundReward,
  defineReward,
  type RewardFunction,
  RewardRegistry,
} from "../../src/reward/registry.ts";
import { RULES } from "../../src/reward/rules.ts";
import { type RewardPart, Rewards, RolloutFailure } from "../../src/reward/scoring.ts";

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
const registry = REWARDS;

async function reward(name: string, params: Record<string, unknown>, given: Rollout): Promise<number> {
  const [scored] = await score(name, registry.bind(name, params), [given]);
  return scored!.reward;
}

/** One reward by itself. */
const score = (name: string, reward: BoundReward, rollouts: readonly Rollout[], signal?: AbortSignal) =>
  new Rewards([{ name, weight: 1, reward }]).score(rollouts, { ...context, ...(signal ? { signal } : {}) });

const each = (score: RewardFunction): BoundReward => ({ each: score });

async function failure(work: () => unknown): Promise<RlvError> {
  try {
    await work();
  } catch (error) {
    expect(error).toBeInstanceOf(RlvError);
    return error as RlvError;
  }
  throw new Error("nothing was thrown");
}

describe("last_integer", () => {
  const correct = (text: string, answer: unknown, params = {}) =>
    reward("last_integer", params, rollout(text, { fields: { answer } }));

  test("the last integer decides", async () => {
    expect(await correct("2 + 3 = 5", "5")).toBe(1);
    expect(await correct("5, or rather 6", "5")).toBe(0);
    expect(await correct("nothing", "5")).toBe(0);
    expect(await correct("3-10=\u22127", "-7")).toBe(1);
    expect(await correct("-7", "7")).toBe(0);
    expect(await correct("1,234", 1234)).toBe(1);
    expect(await correct("It is 007.", "7")).toBe(1);
    expect(await correct("12345678901234567890", "12345678901234567891")).toBe(0);
    expect(await correct("12345678901234567891", "12345678901234567891")).toBe(1);
    expect(await correct("72", "so 8 * 9 is\n#### 72")).toBe(1);
  });

  test("rewards are parameters", async () => {
    const params = { correct_reward: 2, wrong_reward: -0.5 };
    expect(await correct("5", "5", params)).toBe(2);
    expect(await correct("4", "5", params)).toBe(-0.5);
  });

  test("a dataset without the answer is a usage error that names the prompt", async () => {
    for (const answer of [undefined, null, "five", 2.5, 2 ** 60, {}]) {
      const error = await failure(() => correct("5", answer));
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
    const tagged = (text: string) =>
      reward("exact_match", { tag: "answer" }, rollout(text, { fields: { answer: "7" } }));
    expect(await tagged("<think>8</think><answer>7</answer>")).toBe(1);
    expect(await tagged("<answer>8</answer> no, <answer> 7 </answer>.")).toBe(1);
    expect(await tagged("7")).toBe(0);
    expect(await tagged("</answer>7<answer>")).toBe(0);
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
});

describe("registry", () => {
  const custom = (value: () => number | null) =>
    new RewardRegistry([
      ...RULES,
      defineReward({
        name: "custom",
        description: "for tests",
        parameters: z.object({ times: z.number().default(1) }),
        bind:
          ({ times }) =>
          () => {
            const found = value();
            return { reward: found === null ? null : found * times, components: {} };
          },
      }),
    ]);

  test("unknown names and parameters are usage errors that list what exists", async () => {
    expect((await failure(() => registry.get("last_integers"))).message).toContain(
      "exact_match, format_tags",
    );
    const error = await failure(() => registry.bind("last_integer", { corect_reward: 1 }));
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).toContain("corect_reward");
    expect(error.message).toContain("correct_reward");
    const wrong = await failure(() => registry.bind("last_integer", { correct_reward: "1" }));
    expect(wrong.message).toContain("reward last_integer.correct_reward");
    const timeout = await failure(() => registry.bind("last_integer", { timeout: 0 }));
    expect(timeout.message).toContain("last_integer.timeout");
    await failure(() => registry.register(registry.get("regex")));
    await failure(() => registry.bind("reward_model", { path: "x" }));
    expect(new RewardRegistry().names()).toEqual([]);
  });

  test("a reward that throws or is not finite fails with its name and the prompt", async () => {
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const bound = custom(() => bad).bind("custom");
      const error = await failure(() => score("custom", bound, [rollout("x", { index: 41 })]));
      expect(error.message).toContain(`reward custom gave ${bad} as reward: prompt 41, completion 2`);
      expect(exitCodeOf(error)).toBe(1);
    }
    const thrower = custom(() => {
      throw new TypeError("boom\nsecond line");
    }).bind("custom");
    const error = await failure(() => score("mine", thrower, [rollout("x")]));
    expect(error.message).toBe("reward mine failed: prompt 3, completion 2: boom");
    const nan = { reward: 1, components: { part: Number.NaN } };
    const hidden = await failure(() => score("c", { each: () => nan }, [rollout("x")]));
    expect(hidden.message).toContain("reward c gave NaN as part: prompt 3");
  });

  test("what is no result at all is refused, and nothing is scored after a failure", async () => {
    let calls = 0;
    const broken = async () => {
      if (++calls === 2) return 1 as unknown as { reward: number; components: Record<string, number> };
      await Bun.sleep(1);
      return { reward: 1, components: {} };
    };
    const rollouts = Array.from({ length: 20 }, (_, index) => rollout("x", { index }));
    const error = await failure(() => score("broken", { each: broken, concurrency: 2 }, rollouts));
    expect(error.message).toContain("reward broken returned 1: prompt 1, completion 2");
    await Bun.sleep(30);
    expect(calls).toBe(2);
  });

  test("bad data stays a usage error (exit code 2)", async () => {
    const bound = registry.bind("last_integer");
    const error = await failure(() => score("last_integer", bound, [rollout("5", { index: 7 })]));
    expect(exitCodeOf(error)).toBe(2);
    expect(error.message).toContain("prompt 7");
  });

  test("a reward that hangs is named, and told to stop", async () => {
    const heard: boolean[] = [];
    const hang: RewardFunction = (_, { signal }) => {
      signal!.addEventListener("abort", () => heard.push(true));
      return new Promise(() => {});
    };
    const rollouts = [rollout("x", { index: 8 }), rollout("y", { index: 9 })];
    const slow = await failure(() => score("slow", { each: hang, timeout: 0.02 }, rollouts));
    expect(slow.message).toContain("reward slow took more than 0.02 s: prompt 8, completion 2");
    expect([exitCodeOf(slow), heard.length]).toEqual([1, 1]);
    const batch = { batch: () => new Promise<never>(() => {}), timeout: 0.02 };
    const whole = await failure(() => score("whole", batch, rollouts));
    expect(whole.message).toContain("prompt 8, completion 2 to prompt 9, completion 2");
  });

  test("an abort of the run ends the waiting at once", async () => {
    const stop = new AbortController();
    setTimeout(() => stop.abort(), 10);
    const hang = { each: () => new Promise<never>(() => {}), timeout: null };
    const error = await failure(() => score("slow", hang, [rollout("x")], stop.signal));
    expect(error).toBeInstanceOf(Interrupted);
    expect(error.message).toContain("reward slow");
    const late = await failure(() => score("slow", hang, [rollout("x")], stop.signal));
    expect(exitCodeOf(late)).toBe(130);
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
    const scored = await score("slow", { each: slow, concurrency: 4 }, rollouts);
    expect(scored.map((s) => s.reward)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
    expect(most).toBe(4);
    expect(await score("slow", { each: slow, concurrency: 4 }, [])).toEqual([]);
  });
});

describe("batch rewards", () => {
  const rollouts = [rollout("a", { index: 5 }), rollout("bb", { index: 5 }), rollout("", { index: 6 })];
  const lengths = async (given: readonly Rollout[]) =>
    given.map(({ text }) => ({ reward: text.length, components: {} }));

  test("one call for all, results in order", async () => {
    let calls = 0;
    const batch = (given: readonly Rollout[]) => {
      calls++;
      return lengths(given);
    };
    const scored = await score("l", { batch }, rollouts);
    expect(scored.map((s) => [s.reward, s.components])).toEqual([
      [1, { l: 1 }],
      [2, { l: 2 }],
      [0, { l: 0 }],
    ]);
    expect(calls).toBe(1);
    expect(await score("l", { batch }, [])).toEqual([]);
    expect(calls).toBe(1);
  });

  test("too few, too many, no list, a hole, NaN and a throw name the reward and the rollout", async () => {
    const fails = async (give: unknown) =>
      (await failure(() => score("b", { batch: async () => give as never }, rollouts))).message;
    const one = { reward: 1, components: {} };
    expect(await fails([one, one])).toContain(
      "reward b gave 2 results for 3 completions: prompt 6, completion 2",
    );
    expect(await fails([one, one, one, one])).toContain("gave 4 results for 3");
    expect(await fails(7)).toContain("reward b gave 7 for 3 completions: prompt 5");
    expect(await fails([one, undefined, one])).toContain("returned nothing: prompt 5, completion 2");
    expect(await fails([one, one, { reward: Number.NaN, components: {} }])).toContain(
      "gave NaN as reward: prompt 6",
    );
    const batch = async () => {
      throw new RolloutFailure(2, "no such page");
    };
    const thrown = await failure(() => score("b", { batch }, rollouts));
    expect(thrown.message).toBe("reward b failed: prompt 6, completion 2: no such page");
  });
});

describe("weighted sums", () => {
  const part = (name: string, reward: BoundReward, weight = 1): RewardPart => ({ name, weight, reward });
  const sum = async (parts: readonly RewardPart[]) => {
    const [scored] = await new Rewards(parts).score([rollout("a")], context);
    const { reward, components, details } = scored!;
    return { reward, components, details };
  };
  const judged = each(() => ({
    reward: 3,
    components: { style: 1, "judge/truth": 2 },
    details: { judge: { model: "m" } },
  }));

  test("sum and components; a part that cannot score counts nothing", async () => {
    const none = each(() => ({ reward: null, components: {}, details: { why: "empty" } }));
    const parts = [
      part("regex", registry.bind("regex", { pattern: "a" }), 2),
      part("length", registry.bind("length", { max: 4 }), 0.5),
      part("none", none),
    ];
    expect(await sum(parts)).toEqual({
      reward: 2.5,
      components: { regex: 2, length: 0.5 },
      details: { why: "empty" },
    });
    const only = await sum([part("none", none)]);
    expect(only).toEqual({ reward: Number.NaN, components: {}, details: { why: "empty" } });
  });

  test("components of a part keep their names behind its own, details theirs", async () => {
    const parts = [part("judge", judged, 0.5), part("again", judged)];
    expect(await sum(parts)).toEqual({
      reward: 4.5,
      components: { "judge/style": 0.5, "judge/truth": 1, "again/style": 1, "again/judge/truth": 2 },
      details: { judge: { model: "m" }, "again/judge": { model: "m" } },
    });
    expect((await sum([part("judge", judged)])).components).toEqual({ style: 1, "judge/truth": 2 });
  });

  test("parts are distinct, and there is one", async () => {
    const regex = registry.bind("regex", { pattern: "a" });
    await failure(() => new Rewards([]));
    await failure(() => new Rewards([part("regex", regex), part("regex", regex)]));
  });
});
