/** What a frozen reward model says of rollouts, files and folders. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Prompt, Rollout } from "../../src/core/records.ts";
import { openPreferences, preferencePair, preferencePrompt } from "../../src/data/preferences.ts";
import { Tokenizer } from "../../src/io/tokenizer.ts";
import { Dtype } from "../../src/ops/define.ts";
import {
  openReward,
  readReward,
  rolloutRewards,
  scoreSequences,
  tokenizerDifference,
} from "../../src/run/reward-model.ts";
import { StepMemory } from "../../src/tape/tape.ts";
import { loadTensors } from "../golden-tensors.ts";
import { goldenCases } from "../goldens-dirs.ts";
import { openTestDevice } from "../test-device.ts";
import { makeWorld, SMALL, type World } from "./preference-world.ts";
import { metrics, rlv } from "./program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-reward-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

let world: World;
const folder = join(scratch, "rm/checkpoints/final");
beforeAll(async () => {
  world = await makeWorld(scratch, { train: 80, test: 40, sft: 100, steps: 5 });
  const { code, err } = await rlv([
    ...["train", "hh-rm", "--model", world.policy, "--dataset", world.data, "--num_train_steps", "5"],
    ...["--batch_size", "4", "--grad_accum", "1", "--max_length", "64", "--lr", "3e-3", "--eval_steps", "-1"],
    ...["--output_dir", scratch, "--log_dir", join(scratch, "logs"), "--run_name", "rm", ...SMALL],
  ]);
  expect([err, code]).toEqual(["", 0]);
}, 60_000);

class Judge implements Disposable {
  readonly device = openTestDevice(2);
  readonly memory = new StepMemory(this.device);
  readonly read = readReward(folder, null);
  readonly tokenizer = this.read.tokenizer();
  readonly model = openReward(this.read, this.device, {
    ...{ dtype: Dtype.f32, maxPositions: 96, quantization: null },
  });
  /** Of one whole sequence. */
  async of(ids: Int32Array): Promise<number> {
    const group = { prompt: ids, completions: [new Int32Array(0)] };
    return (await scoreSequences(this.memory, this.model, [group], 4096))[0]![0]!;
  }
  score(rollouts: readonly Rollout[], changes: { retokenize?: boolean; policy?: Tokenizer } = {}) {
    return rolloutRewards(this.memory, this.model, {
      policy: this.tokenizer,
      reward: this.tokenizer,
      ...{ retokenize: false, eosPenalty: 0.75, budget: 40 },
      ...changes,
    })(rollouts, { step: 1 });
  }
  [Symbol.dispose](): void {
    this.memory.dispose();
    this.model.dispose();
    this.device.close();
  }
}

/** The chosen answer of a row as a policy would have sampled it. */
function rolloutOf(
  prompt: Prompt,
  ids: readonly number[],
  finish: "eos" | "length",
  tokenizer: Tokenizer,
): Rollout {
  const length = ids.length;
  const text = tokenizer.decode(ids, { skipSpecialTokens: true });
  const floats = new Float32Array(length);
  return {
    ...{ prompt, completion: 0, ids: Int32Array.from(ids), text, finish },
    ...{ logprobs: floats, lse: null, entropies: null },
  };
}

describe("rollouts", () => {
  test("are scored as the pairs were in training, cut ones as if they had ended, less the penalty", async () => {
    using judge = new Judge();
    const { tokenizer } = judge;
    const source = await openPreferences(world.data, "test");
    const eos = tokenizer.eosId!;
    const rollouts: Rollout[] = [];
    const want: number[] = [];
    for (let i = 0; i < 6; i++) {
      const row = source.at(i);
      const prompt = preferencePrompt(row, tokenizer, 64)!;
      const { chosen, rejected } = preferencePair(row, tokenizer, 64)!;
      for (const whole of [chosen, rejected]) {
        expect([...whole.subarray(0, prompt.ids.length)]).toEqual([...prompt.ids]);
        const answer = [...whole.subarray(prompt.ids.length)];
        expect(answer.at(-1)).toBe(eos);
        const score = await judge.of(whole);
        rollouts.push(rolloutOf(prompt, answer, "eos", tokenizer));
        rollouts.push(rolloutOf(prompt, answer.slice(0, -1), "length", tokenizer));
        want.push(score, score - 0.75);
      }
    }
    const scored = await judge.score(rollouts);
    expect(scored.map(({ reward }) => reward)).toEqual(want);
    expect(new Set(want.map((r) => r.toFixed(6))).size).toBeGreaterThan(12);
    expect(scored[1]!.components).toEqual({ reward_model: want[0]!, eos_penalty: -0.75 });
    // Through the text the same tokens come out: both have one tokenizer.
    const again = await judge.score(rollouts, { retokenize: true });
    expect(again.map(({ reward }) => reward)).toEqual(want);
  });

  test("of another tokenizer: the difference is named", () => {
    const own = Tokenizer.load(folder);
    expect(tokenizerDifference(own, Tokenizer.load(world.policy))).toBeNull();
    const other = join(scratch, "other");
    cpSync(world.policy, other, { recursive: true });
    const path = join(other, "tokenizer.json");
    writeFileSync(path, readFileSync(path, "utf8").replaceAll("<|end|>", "<|stop|>"));
    writeFileSync(
      join(other, "tokenizer_config.json"),
      readFileSync(join(other, "tokenizer_config.json"), "utf8").replaceAll("<|end|>", "<|stop|>"),
    );
    expect(tokenizerDifference(own, Tokenizer.load(other))).toMatch(
      /^token \d+ is "<\|end\|>" and "<\|stop\|>"$/,
    );
    writeFileSync(join(other, "chat_template.jinja"), "{{ messages }}");
    cpSync(join(world.policy, "tokenizer.json"), path);
    cpSync(join(world.policy, "tokenizer_config.json"), join(other, "tokenizer_config.json"));
    expect(tokenizerDifference(own, Tokenizer.load(other))).toBe("other chat templates");
  });
});

test("a folder made of a language model: its class, one label, padding that ends nothing, no bias", () => {
  const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
  expect(config.architectures).toEqual(["Qwen3ForSequenceClassification"]);
  expect(Object.keys(config.id2label)).toEqual(["0"]);
  expect(Number.isInteger(config.pad_token_id)).toBe(true);
  expect(config.pad_token_id).not.toBe(Tokenizer.load(folder).eosId);
});

describe("hh-grpo is rewarded by every form of a reward model", () => {
  const steer = (path: string, more: readonly string[] = []) =>
    rlv([
      ...["train", "hh-grpo", "--model", world.policy, "--dataset", world.data, "--num_train_steps", "1"],
      ...["--reward_model_path", path, "--batch_size", "2", "--group_size", "2", "--max_prompt_length", "48"],
      ...["--max_new_tokens", "8", "--eval_steps", "-1", "--output_dir", scratch],
      ...["--log_dir", join(scratch, "logs"), ...SMALL, ...more],
    ]);
  const rewardOf = async (name: string, path: string, more: readonly string[] = []) => {
    const { code, err } = await steer(path, ["--run_name", name, ...more]);
    expect([err, code]).toEqual(["", 0]);
    return metrics(join(scratch, name)).at(-1)!["train/reward_mean"]!;
  };

  test("a folder of int8 or NF4 codes as the plain one quantized when it is loaded", async () => {
    const plain = await rewardOf("plain", folder);
    for (const type of ["int8", "int4"]) {
      const data = ["--dataset", world.data, "--max_length", "64", "--eval_num_batches", "2"];
      const made = await rlv(["quantize", "--checkpoint", folder, "--quant_type", type, ...data]);
      expect([made.code, made.code === 0 ? "" : made.err]).toEqual([0, ""]);
      const stored = await rewardOf(`stored-${type}`, join(folder, `quantized_${type}`));
      expect(stored).toBe(await rewardOf(`loaded-${type}`, folder, ["--rm_quant_type", type]));
      expect(stored).not.toBe(plain);
      expect(Math.abs(stored - plain)).toBeLessThan(0.2);
    }
    const twice = await steer(join(folder, "quantized_int8"), [
      "--rm_quant_type",
      "int4",
      "--run_name",
      "twice",
    ]);
    expect([twice.code, twice.err]).toEqual([
      2,
      expect.stringMatching(/quantized to int8 is not quantized to nf4/),
    ]);
    // Frozen weights of the reference: the divergence is no longer 0 at the first step.
    const { code } = await steer(folder, ["--ref_quant_type", "int4", "--run_name", "ref"]);
    expect(code).toBe(0);
    expect(metrics(join(scratch, "ref")).at(-1)!["train/kl_div"]!).toBeGreaterThan(0);
    expect(metrics(join(scratch, "plain")).at(-1)!["train/kl_div"]).toBe(0);
  }, 120_000);

  test("an adapter, with the base that it names", async () => {
    const trained = await rlv([
      ...["train", "hh-rm", "--model", world.policy, "--dataset", world.data, "--num_train_steps", "5"],
      ...[
        "--batch_size",
        "4",
        "--grad_accum",
        "1",
        "--max_length",
        "64",
        "--lr",
        "3e-3",
        "--eval_steps",
        "-1",
      ],
      ...["--output_dir", scratch, "--log_dir", join(scratch, "logs"), "--run_name", "rm-lora", ...SMALL],
      ...["--lora", "true"],
    ]);
    expect([trained.err, trained.code]).toEqual(["", 0]);
    const adapter = join(scratch, "rm-lora/checkpoints/final");
    expect(Number.isFinite(await rewardOf("by-adapter", adapter))).toBe(true);
  }, 60_000);
});

describe("rlv score", () => {
  const score = async (args: readonly string[], lines: readonly object[]) => {
    const [input, out] = [join(scratch, "in.jsonl"), join(scratch, "out.jsonl")];
    writeFileSync(input, lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
    const ended = await rlv(["score", ...args, "--in", input, "--out", out]);
    expect([ended.code, ended.code === 0 ? "" : ended.err]).toEqual([0, ""]);
    const read = readFileSync(out, "utf8").trimEnd().split("\n");
    return read.map((line) => JSON.parse(line) as { reward: number });
  };

  const goldens = goldenCases("reward").filter((c) => c.kind === "reward_model");
  test.each(goldens.map((c) => [c.name, c] as const))("%s: ids", async (_name, golden) => {
    const want = loadTensors(golden.dir);
    const of = (name: string) => want.get(name)!.data;
    const lines = ["chosen", "rejected"].flatMap((which) =>
      Array.from(of(`score_${which}`), (_, i) => ({ ids: [...of(`${which}.${i}`)] })),
    );
    const scores = [...of("score_chosen"), ...of("score_rejected")];
    const got = await score(["--model", join(golden.dir, golden.spec.model)], lines);
    got.forEach(({ reward }, i) => {
      expect(Math.abs(reward - scores[i]!)).toBeLessThan(golden.spec.tolerance.score_abs);
    });
  });

  test("prompt and completion, messages and their ids agree", async () => {
    const tokenizer = Tokenizer.load(folder);
    const prompt = "\n\nHuman: Describe the snow.\n\nAssistant:";
    const answers = [" Sure, the snow is white.", " Bah, it is black and"];
    const ids = answers.map((answer) => [
      ...tokenizer.encode(prompt),
      ...tokenizer.encode(`${answer}<|end|>`),
    ]);
    const rows = [
      ...answers.map((completion) => ({ prompt, completion })),
      ...answers.map((content) => ({
        messages: [
          { role: "user", content: "Describe the snow." },
          { role: "assistant", content: content.trim() },
        ],
      })),
      ...ids.map((row) => ({ ids: row })),
    ];
    const rewards = (await score(["--model", folder], rows)).map(({ reward }) => reward);
    expect(rewards.slice(2, 4)).toEqual(rewards.slice(0, 2));
    expect(rewards.slice(4, 6)).toEqual(rewards.slice(0, 2));
    expect(rewards[0]).not.toBe(rewards[1]);
    const open = await score(["--model", folder, "--end", "false"], rows.slice(0, 1));
    const without = await score(["--model", folder], [{ ids: ids[0]!.slice(0, -1) }]);
    expect(open[0]!.reward).toBe(without[0]!.reward);
    expect(open[0]!.reward).not.toBe(rewards[0]);
    // Quantized weights score nearly the same.
    const int8 = await score(["--model", folder, "--quant_type", "int8"], rows.slice(0, 2));
    int8.forEach(({ reward }, i) => {
      expect(reward).not.toBe(rewards[i]);
      expect(Math.abs(reward - rewards[i]!)).toBeLessThan(0.05 * Math.max(1, Math.abs(rewards[i]!)));
    });
  });

  test.each([
    [{ prompt: "x" }, /needs "prompt" and "completion", "messages", or "ids"/],
    [{ ids: [1, 99999] }, /outside the vocabulary/],
    [{ ids: [] }, /nothing to score/],
    [{ messages: [{ role: "user", content: "x" }] }, /last message must be the assistant's/],
    [{ prompt: "a".repeat(300), completion: "b" }, /tokens exceed 128/],
  ])("%j is refused by its line", async (line, text) => {
    const [input, out] = [join(scratch, "bad.jsonl"), join(scratch, "bad-out.jsonl")];
    writeFileSync(input, `${JSON.stringify({ ids: [1, 2] })}\n${JSON.stringify(line)}\n`);
    const ended = await rlv(["score", "--model", folder, "--in", input, "--out", out]);
    expect(ended.code).toBe(2);
    expect(ended.err).toMatch(text);
    expect(ended.err).toMatch(/bad\.jsonl:2/);
  });

  test("a language model has no rewards", async () => {
    const input = join(scratch, "one.jsonl");
    writeFileSync(input, `${JSON.stringify({ ids: [1] })}\n`);
    const ended = await rlv([
      "score",
      "--model",
      world.policy,
      "--in",
      input,
      "--out",
      join(scratch, "o.jsonl"),
    ]);
    expect([ended.code, ended.err]).toEqual([2, expect.stringMatching(/is not a reward model/)]);
  });
});
