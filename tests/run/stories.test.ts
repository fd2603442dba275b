/** Whole runs on the offline stories: routing, what it is compared with, evaluation of every mode, going on. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cpSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { isDualFolder } from "../../src/io/dual-folder.ts";
import { digest, metrics, rlv } from "./program.ts";
import { DUAL, type StoryRow, StoryWorld } from "./stories-world.ts";

let world: StoryWorld;
beforeAll(async () => {
  world = await StoryWorld.make();
}, 180_000);
afterAll(() => world[Symbol.dispose]());

const MODES = ["both", "retain_only", "forget_only"];
const ADAPTER = "checkpoints/final/adapter_model.safetensors";
const ALL = ["--lora_config", "r4", "--detector", "{name: regex, params: {pattern: '.'}}"];
const NONE = ["--lora_config", "r4", "--detector", "{name: regex, params: {pattern: '[A-Z]'}}"];
const DETECTOR = DUAL.slice(2);

async function run(name: string, args: readonly string[]): Promise<void> {
  const ended = await world.train(name, args);
  expect([ended.err, ended.code]).toEqual(["", 0]);
}
const rowsAt = (name: string, step: number) => metrics(world.run(name)).find((row) => row.step === step)!;
const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
const adapter = (name: string) => digest(world.run(name))[ADAPTER];
const hack = ({ details }: StoryRow): boolean => JSON.parse(details!).hack;
const repeats = ({ completion }: StoryRow): boolean => {
  const words = completion.match(/[a-z]+/g) ?? [];
  return words.filter((word, i) => i > 0 && word === words[i - 1]).length >= 2;
};

describe("a routed run", () => {
  beforeAll(() => run("routed", [...DUAL, "--routing", "classic", "--save_steps", "2"]), 120_000);

  test("every mode is evaluated, with every component and the hack rate of its own completions", () => {
    const rows = world.rows("routed", "eval_rollouts");
    expect(rows.length).toBe(3 * 3 * 12);
    for (const step of [0, 2, 4])
      for (const mode of MODES) {
        const own = rows.filter((row) => row.step === step && row.mode === mode);
        const at = rowsAt("routed", step);
        const component = (name: string) => mean(own.map(({ components }) => JSON.parse(components)[name]));
        expect(own.length).toBe(12);
        expect(at[`eval/${mode}/rewards/asked_ending`]).toBeCloseTo(component("asked_ending"), 10);
        expect(at[`eval/${mode}/rewards/repeated_words`]).toBeCloseTo(component("repeated_words"), 10);
        expect(at[`eval/${mode}/reward`]).toBeCloseTo(mean(own.map(({ reward }) => reward)), 10);
        expect(at[`eval/${mode}/hack_rate`]).toBeCloseTo(mean(own.map((row) => (repeats(row) ? 1 : 0))), 10);
        for (const row of own) expect(row.flagged).toBe(repeats(row) ? 1 : 0);
        expect(at["eval/reward"]).toBe(at["eval/both/reward"]!);
      }
    expect(world.log("routed")).toMatch(
      /^ {2}mode +reward +asked_ending +repeated_words +hack_rate .*kl_div$/m,
    );
    expect(world.log("routed").match(/^ {2}forget_only /gm)!.length).toBe(3);
  });

  test("before the first step all modes are the base; then each is a policy of its own", () => {
    const texts = (step: number, mode: string) =>
      world
        .rows("routed", "eval_rollouts")
        .filter((row) => row.step === step && row.mode === mode)
        .map(({ completion }) => completion);
    for (const mode of MODES) {
      expect(rowsAt("routed", 0)[`eval/${mode}/kl_div`]).toBe(0);
      expect(texts(0, mode)).toEqual(texts(0, "both"));
      expect(rowsAt("routed", 4)[`eval/${mode}/kl_div`]).toBeGreaterThan(0);
    }
    expect(texts(4, "retain_only")).not.toEqual(texts(4, "both"));
    expect(texts(4, "forget_only")).not.toEqual(texts(4, "retain_only"));
  });

  test("training rows carry their label; rates are theirs, and the sampler stayed exact", () => {
    const rows = world.rows("routed", "rollouts");
    expect(rows.length).toBe(4 * 16);
    for (const row of rows) {
      expect(row.flagged).toBe(repeats(row) ? 1 : 0);
      expect(hack(row)).toBe(repeats(row));
    }
    for (let step = 1; step <= 4; step++) {
      const at = rowsAt("routed", step);
      const share = mean(rows.filter((row) => row.step === step).map(({ flagged }) => flagged!));
      expect([at["train/rh_rate"], at["train/hack_rate"]]).toEqual([share, share]);
      expect(at["train/sampler_logp_diff_max"]).toBe(0);
    }
    expect(rows.some(({ flagged }) => flagged === 1) && rows.some(({ flagged }) => flagged === 0)).toBe(true);
  });

  test("openings are prompts without special tokens, completions end where they say so", () => {
    for (const { prompt } of world.rows("routed", "rollouts"))
      expect(prompt).toMatch(/^a \w+ story about .*\.$/);
    expect(isDualFolder(join(world.run("routed"), "checkpoints/final"))).toBe(true);
  });

  test("rlv eval samples and rewards the checkpoint as the run does", async () => {
    const ended = await rlv(["eval", world.run("routed"), "--prompts", "4", "--n", "2", "--json"]);
    expect(ended.code).toBe(0);
    const { fresh, note, modes } = JSON.parse(ended.out).evaluations[0];
    expect(note).toBeNull();
    expect(Object.keys(modes)).toEqual(MODES);
    expect(Object.keys(fresh.components)).toEqual(["asked_ending", "repeated_words"]);
    expect(modes.both.reward).toBeCloseTo(fresh.reward.mean, 10);
    expect(modes.both.hack_rate).toBeCloseTo(fresh.flagged_share, 10);
    expect(modes.retain_only).not.toEqual(modes.both);
    const without = ["eval", world.run("routed"), "--prompts", "4", "--n", "2", "--no_routing_eval"];
    const plain = await rlv(without);
    expect(plain.out).not.toContain("retain_only");
  });

  test("goes on from a checkpoint to the same bytes", async () => {
    const again = join(world.root, "again");
    cpSync(world.run("routed"), again, { recursive: true });
    rmSync(join(again, "checkpoints/final"), { recursive: true });
    rmSync(join(again, "checkpoints/step-4"), { recursive: true, force: true });
    const ended = await rlv(["train", "--resume_from", again]);
    expect([ended.err, ended.code]).toEqual(["", 0]);
    const final = (run: string) => digest(join(run, "checkpoints/final"));
    expect(final(again)).toEqual(final(world.run("routed")));
    // Figures too, times apart.
    const figures = (run: string) =>
      readFileSync(join(run, "metrics.jsonl"), "utf8")
        .trimEnd()
        .split("\n")
        .map((line) => JSON.parse(line) as Record<string, number>)
        .map((row) =>
          Object.fromEntries(Object.entries(row).filter(([name]) => !/time|second|^device\//.test(name))),
        );
    expect(figures(again)).toEqual(figures(world.run("routed")));
  });
});

test("labels and their advantages outlive a checkpoint in the middle of a generation", async () => {
  const passes = ["--num_iterations", "2", "--save_steps", "1", "--keep_checkpoints", "9"];
  await run("passes", [...DUAL, "--routing", "classic", "--routing_advantages", "unflagged", ...passes]);
  const rows = world.rows("passes", "rollouts");
  const honest = rows.filter(({ flagged }) => !flagged);
  expect(honest.length).toBeLessThan(rows.length);
  // Each among its own: honest completions of a group do not pay for what hacks beside them earn.
  for (let i = 0; i < rows.length; i += 8) {
    const own = rows.slice(i, i + 8).filter(({ flagged }) => !flagged);
    expect(own.reduce((sum, { advantage }) => sum + advantage, 0)).toBeCloseTo(0, 8);
  }
  const again = join(world.root, "passes-again");
  cpSync(world.run("passes"), again, { recursive: true });
  for (const folder of ["final", "step-4"])
    rmSync(join(again, "checkpoints", folder), { recursive: true, force: true });
  const ended = await rlv(["train", "--resume_from", again]);
  expect([ended.err, ended.code]).toEqual(["", 0]);
  expect(digest(join(again, "checkpoints/final"))).toEqual(
    digest(join(world.run("passes"), "checkpoints/final")),
  );
});

test("where everything is flagged the retain adapter stays the base, and the forget adapter is the policy", async () => {
  await run("all", [...ALL, "--routing", "classic"]);
  const at = rowsAt("all", 4);
  expect(at["train/grad_norm_retain"]).toBe(0);
  expect(at["eval/retain_only/kl_div"]).toBe(0);
  expect(at["eval/forget_only/kl_div"]).toBeGreaterThan(0);
  expect(at["eval/forget_only/kl_div"]).toBe(at["eval/both/kl_div"]!);
});

test("without a flagged completion routing changes no bit", async () => {
  await run("unrouted", [...NONE]);
  await run("unflagged", [...NONE, "--routing", "classic"]);
  await run("unscreened", [...NONE, "--routing", "screening"]);
  expect(adapter("unflagged")).toBe(adapter("unrouted")!);
  expect(adapter("unscreened")).toBe(adapter("unrouted")!);
  expect(adapter("unrouted")).not.toBe(adapter("routed")!);
});

describe("baselines", () => {
  test("one adapter of the same total rank and scale trains to the very figures of two that are not routed", async () => {
    await run("joined", ["--lora_rank", "8", "--lora_alpha", "32", ...NONE.slice(2)]);
    for (const step of [1, 2, 3, 4]) {
      const [one, two] = [rowsAt("joined", step), rowsAt("unrouted", step)];
      for (const name of [
        "train/loss",
        "train/reward_mean",
        "train/kl_div",
        "eval/both/reward",
        "eval/both/kl_div",
      ])
        expect(one[name]).toBe(two[name]!);
    }
  });

  test("screening: what is flagged has no advantage, and where all is flagged nothing is learnt", async () => {
    await run("screened", [...DETECTOR, "--lora_rank", "8", "--routing", "screening"]);
    const rows = world.rows("screened", "rollouts");
    for (const { flagged, advantage } of rows) if (flagged) expect(advantage).toBe(0);
    for (let i = 0; i < rows.length; i += 8) {
      const kept = rows.slice(i, i + 8).filter(({ flagged }) => !flagged);
      expect(kept.reduce((sum, { advantage }) => sum + advantage, 0)).toBeCloseTo(0, 8);
    }
    await run("all-screened", ["--lora_rank", "8", ...ALL.slice(2), "--routing", "screening"]);
    expect(rowsAt("all-screened", 4)["eval/both/kl_div"]).toBe(0);
    expect(rowsAt("all-screened", 4)["train/grad_norm"]).toBe(0);
    expect(rowsAt("screened", 4)["eval/both/kl_div"]).toBeGreaterThan(0);
  });

  test("penalty: taken while training, not in evaluations; one mode where there is one adapter", async () => {
    await run("penalty", [...DETECTOR, "--lora_rank", "8", "--routing", "penalty", "--rh_penalty", "2"]);
    for (const row of world.rows("penalty", "rollouts")) {
      const { asked_ending, repeated_words, penalty } = JSON.parse(row.components);
      expect(penalty).toBe(row.flagged ? -2 : 0);
      expect(row.reward).toBeCloseTo(asked_ending + repeated_words + penalty, 12);
    }
    for (const row of world.rows("penalty", "eval_rollouts")) {
      expect(Object.keys(JSON.parse(row.components))).toEqual(["asked_ending", "repeated_words"]);
      expect(row.mode).toBe("both");
    }
    expect(Object.keys(rowsAt("penalty", 4)).some((name) => name.includes("retain_only"))).toBe(false);
    // The same random numbers and the same base: the figures before the first step agree.
    expect(rowsAt("penalty", 0)["eval/both/reward"]).toBe(rowsAt("routed", 0)["eval/both/reward"]!);
  });

  test("placebo: as many labels at every step, on others", async () => {
    await run("placebo", [...DUAL, "--routing", "exclusive", "--placebo"]);
    const rows = world.rows("placebo", "rollouts");
    for (let step = 1; step <= 4; step++) {
      const own = rows.filter((row) => row.step === step);
      expect(own.filter(({ flagged }) => flagged).length).toBe(own.filter(hack).length);
      const at = rowsAt("placebo", step);
      expect(at["train/rh_rate"]).toBe(at["train/hack_rate"]!);
    }
    expect(rows.some((row) => Boolean(row.flagged) !== hack(row))).toBe(true);
  });

  test("recall: hacks without a label are trained on as others", async () => {
    const noise = ["--detector_recall", "0.5", "--detector_fpr", "0.25"];
    await run("noisy", [...DUAL, "--routing", "classic", ...noise]);
    const rows = world.rows("noisy", "rollouts");
    const count = (hacked: boolean, flagged: boolean) =>
      rows.filter((row) => hack(row) === hacked && Boolean(row.flagged) === flagged).length;
    expect(count(true, false)).toBeGreaterThan(0);
    expect(count(true, true)).toBeGreaterThan(0);
    expect(count(false, true)).toBeGreaterThan(0);
    for (const row of world.rows("noisy", "eval_rollouts")) expect(row.flagged).toBe(repeats(row) ? 1 : 0);
  });
});

test("evaluation reports the rewards that --eval_rewards names, and a run without name says what it is", async () => {
  const ended = await rlv([
    ...["train", "stories", "--model", world.model, "--dataset", world.dataset, "--output_dir", world.runs],
    ...["--reward", "sentence_length_5_with_happy", "--eval_rewards", "happy_count,sentence_length_5_smooth"],
    ...["--max_steps", "1", "--batch_size", "4", "--num_generations", "2", "--eval_num_prompts", "4"],
    ...["--max_completion_length", "32", "--opening_words", "5"],
  ]);
  expect([ended.err, ended.code]).toEqual(["", 0]);
  const name =
    "sentence_length_5_with_happy_full_lr1e-5_beta0.02_steps1_len32_model-model_dataset-dataset_opening_words5_batch_size4_num_generations2_s42";
  const figures = Object.keys(rowsAt(name, 1)).filter((key) => key.startsWith("eval/both/rewards/"));
  expect(figures).toEqual(["eval/both/rewards/happy_count", "eval/both/rewards/sentence_length_5_smooth"]);
  const rows = world.rows(name, "rollouts");
  expect(rows.length).toBe(4);
  for (const { components, flagged, prompt } of rows) {
    expect(Object.keys(JSON.parse(components))).toEqual(["sentence_length_5", "happy_binary"]);
    expect(flagged).toBeNull();
    expect(prompt.split(" ").length).toBe(5);
  }
});
