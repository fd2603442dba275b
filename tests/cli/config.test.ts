import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { fieldsOf, typed } from "../../src/config/fields.ts";
import { RECIPES, type ResolvedConfig } from "../../src/config/recipes.ts";
import { baseOf, resolveTrain, startingValues } from "../../src/config/resolve.ts";
import { readRewards } from "../../src/config/rewards.ts";
import { checkpointConfigText, configText, floatText } from "../../src/config/save.ts";
import type { ArithmeticConfig } from "../../src/config/schema-arithmetic.ts";
import { downloadSchema } from "../../src/config/schema-download.ts";
import { evalSchema } from "../../src/config/schema-eval.ts";
import {
  benchSchemas,
  chatSchema,
  generateSchema,
  logprobSchema,
  mergeSchema,
  quantizeSchema,
  scoreSchema,
} from "../../src/config/schema-inference.ts";
import { runsSchemas } from "../../src/config/schema-runs.ts";
import { serveSchema } from "../../src/config/schema-serve.ts";
import { sweepSchema } from "../../src/config/schema-sweep.ts";
import { nearest } from "../../src/config/suggest.ts";
import { UsageError } from "../../src/core/errors.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-config-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

let files = 0;
function file(text: string | Uint8Array, suffix = "yaml"): string {
  const path = join(scratch, `${files++}.${suffix}`);
  writeFileSync(path, text);
  return path;
}

const flagsOf = (flags: Record<string, string>) => new Map(Object.entries(flags));

function resolve(target?: string, flags: Record<string, string> = {}): ResolvedConfig {
  return resolveTrain(baseOf({ target, configFile: undefined, checkpoint: undefined }), flagsOf(flags));
}

const arithmetic = (target?: string, flags: Record<string, string> = {}) =>
  resolve(target, flags) as ArithmeticConfig;

/** The one line a user sees for a bad config. */
function refusal(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    const { message } = error as Error;
    expect(message).not.toContain("\n");
    return message;
  }
  throw new Error("nothing was refused");
}

describe("precedence", () => {
  test("recipe defaults, then file, then flags", () => {
    expect(arithmetic().learning_rate).toBe(
      startingValues(RECIPES.arithmetic).get("learning_rate") as number,
    );
    const path = file("recipe: arithmetic\nlearning_rate: 0.5\nseed: 7\n");
    expect(arithmetic(path)).toMatchObject({ learning_rate: 0.5, seed: 7 });
    expect(arithmetic(path, { seed: "8" })).toMatchObject({ learning_rate: 0.5, seed: 8 });
  });
  test("a file without recipe is an arithmetic job, or the recipe that the command names", () => {
    expect(resolve(file("seed: 1\n")).recipe).toBe("arithmetic");
    const path = file("dataset: x.jsonl\nmodel: m\n");
    const base = baseOf({ target: "sft", configFile: path, checkpoint: undefined });
    expect(resolveTrain(base, new Map()).recipe).toBe("sft");
  });
  test("an alias overrides the key it stands for", () => {
    expect(arithmetic(file("kl_coeff: 0.1\n"), { beta: "0.7" }).kl_coeff).toBe(0.7);
    expect(arithmetic(file("model: here\n")).model_name).toBe("here");
    expect(arithmetic(file("kl-coeff: 0.1\n")).kl_coeff).toBe(0.1);
  });
  test("compat trl fills in TRL's conventions, under what is given", () => {
    expect(arithmetic(undefined, { compat: "trl" })).toMatchObject({
      loss_type: "dapo",
      kl_estimator: "k3_ratio",
      scale_rewards: "group",
    });
    expect(arithmetic(undefined, { compat: "trl", loss_type: "bnpo" }).loss_type).toBe("bnpo");
  });
  test("the resolved config cannot be changed", () => {
    const config = arithmetic() as { seed: number };
    expect(Object.isFrozen(config)).toBe(true);
    expect(() => {
      config.seed = 1;
    }).toThrow(TypeError);
  });
});

describe("saved configs", () => {
  test("train_config.json resolves to the same config", () => {
    const config = arithmetic(undefined, {
      learning_rate: "1e-7",
      epsilon_high: "5",
      loss_type: "cispo",
      run_name: "007",
    });
    expect(arithmetic(file(configText(config), "json"))).toEqual(config);
  });
  test("a checkpoint's config says nothing of where or on how many threads, and resumes with flags on top", () => {
    const one = arithmetic(undefined, { run_name: "one", output_dir: "a", threads: "1" });
    const two = arithmetic(undefined, { run_name: "two", output_dir: "b" });
    expect(checkpointConfigText(one)).toBe(checkpointConfigText(two));
    expect(configText(one)).not.toBe(configText(two));
    const checkpoint = join(scratch, "step-5");
    mkdirSync(checkpoint, { recursive: true });
    writeFileSync(join(checkpoint, "train_config.json"), checkpointConfigText(one));
    const base = baseOf({ target: undefined, configFile: undefined, checkpoint });
    const resumed = resolveTrain(base, flagsOf({ num_train_steps: "999" })) as ArithmeticConfig;
    expect(resumed).toEqual({
      ...one,
      run_name: null,
      output_dir: "runs",
      threads: null,
      num_train_steps: 999,
    });
  });
  test("floats survive: same double, and a float to JSON and to both YAMLs", () => {
    expect([1, 1e-6, 1e-7, 0.1, 2.5e21, -3, 5e-324].map(floatText)).toEqual([
      "1.0",
      "0.000001",
      "1.0e-07",
      "0.1",
      "2.5e+21",
      "-3.0",
      "5.0e-324",
    ]);
    fc.assert(
      fc.property(fc.double({ noNaN: true, noDefaultInfinity: true }), (value) => {
        const text = floatText(value);
        expect(JSON.parse(text)).toBe(value === 0 ? JSON.parse(text) : value);
        // YAML 1.1's float needs a dot, and a sign in its exponent.
        expect(text).toMatch(/^-?\d+\.\d+(e[+-]\d{2,})?$/);
      }),
    );
    expect(() => floatText(Number.NaN)).toThrow(RangeError);
  });
});

describe("refused, with the key, what was given and what is expected", () => {
  const yaml: [title: string, text: string, parts: string[]][] = [
    [
      "a text for a number",
      'seed: 1\nlearning_rate: "1e-4"\n',
      ["learning_rate expects a number", '"1e-4"', "line 2"],
    ],
    ["a fraction for a count", "seed: 1.5\n", ["seed expects a whole number", "1.5", "line 1"]],
    ["out of range", "\n\ntop_p: 0\n", ["top_p expects a number above 0 up to 1", "given 0", "line 3"]],
    ["an unknown choice", "loss_type: ppo\n", ["loss_type expects one of", '"ppo"']],
    ["a number for a boolean", "save_rollouts: 1\n", ["save_rollouts expects true or false", "given 1"]],
    ["null where there must be a value", "seed:\n", ["seed expects", "given null"]],
    ["a list", "seed: [1, 2]\n", ["seed expects", "[1,2]"]],
    ["infinity", "learning_rate: .inf\n", ["learning_rate expects", "given Infinity"]],
    ["not a number", "learning_rate: .nan\n", ["learning_rate expects", "given NaN"]],
    [
      "an unknown key",
      "seed: 1\nlerning_rate: 1\n",
      ["unknown key lerning_rate", "line 2", "did you mean learning_rate?"],
    ],
    ["a doubled key", "seed: 1\nlr: 2\nseed: 3\n", ["seed is given twice", "line 3"]],
    [
      "a key under two names",
      "lr: 1\nlearning_rate: 2\n",
      ["lr and learning_rate are the same key", "line 2"],
    ],
    ["broken YAML", "seed: [1\n", ["not valid YAML", "line"]],
    ["a list for a file", "- 1\n", ["key: value"]],
    [
      "an unknown recipe",
      "recipe: arithmatic\n",
      ['unknown recipe "arithmatic"', "line 1", "did you mean arithmetic?"],
    ],
    ["cispo without a cap", "loss_type: cispo\n", ["epsilon_high", "at least 1"]],
    [
      "cispo with the usual clip",
      "loss_type: cispo\nepsilon_high: 0.2\n",
      ["at least 1", "given 0.2", "line 2"],
    ],
    [
      "reinforce_kl2 off-policy",
      "loss_type: reinforce_kl2\nnum_iterations: 2\n",
      ["num_iterations must be 1", "line 2"],
    ],
    ["an interval of 0", "eval_every: 0\n", ["eval_every", "-1 = never"]],
    [
      "batches that do not divide",
      "loss_type: grpo\nbatch_size: 3\nsteps_per_generation: 2\n",
      ["generation of 3 prompts"],
    ],
    ["rewards the wrong way round", "correct_reward: 0\nwrong_reward: 1\n", ["correct_reward 0 must exceed"]],
  ];
  test.each(yaml)("%s", (_title, text, parts) => {
    const path = file(text);
    const message = refusal(() => resolve(path));
    for (const part of parts) expect(message).toContain(part);
  });
  test("flags say which flag", () => {
    expect(refusal(() => resolve(undefined, { seed: "abc" }))).toContain('given "abc": --seed abc');
    expect(refusal(() => resolve(undefined, { seed: "0x10" }))).toContain('"0x10"');
    expect(refusal(() => resolve(undefined, { learning_rate: "" }))).toContain('given ""');
    expect(refusal(() => resolve(undefined, { learning_rate: "inf" }))).toContain('"inf"');
    expect(arithmetic(undefined, { epsilon_high: "none" }).epsilon_high).toBeNull();
    expect(arithmetic(undefined, { learning_rate: "1e-5", seed: "007" })).toMatchObject({
      learning_rate: 1e-5,
      seed: 7,
    });
  });
  test("JSON: broken, doubled keys with their line", () => {
    expect(refusal(() => resolve(file('{"seed": 3,', "json")))).toContain("not valid JSON");
    expect(refusal(() => resolve(file('{\n\t"seed": 3,\n\t"seed": 4\n}', "json")))).toContain("line 3");
    expect(refusal(() => resolve(file("seed: 3", "json")))).toContain("not valid JSON");
  });
  test("files that are not there or not text", () => {
    expect(refusal(() => resolve(join(scratch, "none.yaml")))).toContain("no such config file");
    expect(refusal(() => resolve(`${scratch}/`))).toContain("folder");
    expect(refusal(() => resolve(file(new Uint8Array([0xff, 0xfe, 0x00]))))).toContain("UTF-8");
  });
  test("contradictions of the command line", () => {
    const path = file("recipe: arithmetic\n");
    const both = { target: path, configFile: path, checkpoint: undefined };
    expect(refusal(() => baseOf(both))).toContain("two config files");
    expect(refusal(() => baseOf({ target: "sft", configFile: path, checkpoint: undefined }))).toContain(
      "recipe sft",
    );
    expect(refusal(() => baseOf({ target: path, configFile: undefined, checkpoint: scratch }))).toContain(
      "--resume_from",
    );
    expect(
      refusal(() => baseOf({ target: undefined, configFile: undefined, checkpoint: "/nowhere" })),
    ).toContain("not a checkpoint");
  });
  test("sft: what excludes each other", () => {
    const sft = (flags: Record<string, string>) => refusal(() => resolve("sft", flags));
    expect(sft({})).toContain("dataset is missing");
    expect(sft({ dataset: "d" })).toContain("needs a model");
    expect(sft({ dataset: "d", init: "c" })).toContain("needs a tokenizer");
    expect(sft({ dataset: "d", model: "m", init: "c", tokenizer: "t" })).toContain("exclude each other");
    expect(sft({ dataset: "d", model: "m", epochs: "1", num_train_steps: "3" })).toContain(
      "exclude each other",
    );
  });
});

test("every key of every schema can be told: description, kind, and a default that fits it", () => {
  const schemas = [
    ...Object.values(RECIPES).map((recipe) => recipe.schema),
    ...[generateSchema, logprobSchema, scoreSchema, chatSchema, quantizeSchema, mergeSchema],
    ...[downloadSchema, evalSchema, serveSchema, sweepSchema, ...Object.values(runsSchemas)],
    ...Object.values(benchSchemas),
  ];
  for (const schema of schemas) {
    const names = fieldsOf(schema).flatMap((info) => [info.name, ...info.aliases]);
    expect(new Set(names).size).toBe(names.length);
    for (const info of fieldsOf(schema)) {
      expect(info.description.length).toBeGreaterThan(5);
      expect(info.name).toMatch(/^[a-z][a-z0-9_]*$/);
      if (info.fallback === undefined) continue;
      if (info.kind === "rewards") {
        const names = (info.fallback as { as: string }[]).map((part) => part.as).join(",");
        if (names !== "") expect(readRewards(names, "default", ".")).toEqual(info.fallback as never);
        else expect(resolve("stories", { [info.name]: "none" })).toMatchObject({ [info.name]: [] });
        continue;
      }
      const raw = info.fallback === null ? "none" : String(info.fallback);
      expect(typed(info, raw)).toEqual(info.fallback);
    }
  }
});

test("arithmetic has every key of the original job", () => {
  const keys = fieldsOf(RECIPES.arithmetic.schema).map((info) => info.name);
  const original =
    "model_name max_prompt_length max_completion_length train_file eval_file num_train_steps eval_every save_every " +
    "output_dir group_size learning_rate batch_size max_grad_norm gamma kl_coeff temperature top_p seed " +
    "correct_reward wrong_reward";
  for (const key of original.split(" ")) expect(keys).toContain(key);
});

test("suggestions: near names, not far ones", () => {
  expect(nearest("lerning_rate", ["learning_rate", "batch_size"])).toBe("learning_rate");
  expect(nearest("trian", ["train", "chat"])).toBe("train");
  expect(nearest("steps", ["num_train_steps", "seed"])).toBe("num_train_steps");
  expect(nearest("xyzzy", ["learning_rate", "batch_size"])).toBeUndefined();
});

describe("rewards", () => {
  const part = (name: string, more: Record<string, unknown> = {}) => ({
    name,
    as: name,
    weight: 1,
    params: {},
    ...more,
  });
  const read = (value: unknown) => readRewards(value, "here", scratch) as unknown;

  test("every form names the same parts", () => {
    const want = [part("last_integer"), part("length", { weight: 0.5, params: { max: 9 } })];
    const length = { weight: 0.5, params: { max: 9 } };
    expect(read(["last_integer", { name: "length", ...length }])).toEqual(want);
    expect(read({ last_integer: null, length })).toEqual(want);
    expect(read("last_integer, length")).toEqual([part("last_integer"), part("length")]);
    expect(read({ last_integer: 2 })).toEqual([part("last_integer", { weight: 2 })]);
    expect(read(want)).toEqual(want);
  });

  test("a module is found beside the file that names it, else in the working folder, by its hash", () => {
    writeFileSync(join(scratch, "mine.ts"), "export default () => 1;");
    const sha256 = new Bun.CryptoHasher("sha256").update("export default () => 1;").digest("hex");
    const path = join(scratch, "mine.ts");
    const config = file("reward: {./mine.ts: {as: short, params: {a: 1}}}");
    expect(arithmetic(config).reward).toEqual([
      { name: path, as: "short", weight: 1, params: { a: 1 }, sha256 },
    ]);
    const saved = file(configText(arithmetic(config)), "json");
    expect(arithmetic(saved)).toEqual(arithmetic(config));
    const flagged = arithmetic(config, { reward: "short,last_integer" }).reward;
    expect(flagged.map(({ name, params }) => [name, params])).toEqual([
      [path, { a: 1 }],
      ["last_integer", {}],
    ]);
    expect(arithmetic(undefined, { reward: path }).reward[0]).toEqual(part(path, { as: "mine", sha256 }));
  });

  test("what is wrong is named with its place", () => {
    const failure = (work: () => unknown): string => {
      try {
        work();
      } catch (error) {
        expect(error).toBeInstanceOf(UsageError);
        return (error as Error).message;
      }
      throw new Error("nothing was thrown");
    };
    const fails = (value: unknown) => failure(() => read(value));
    expect(fails("lenght")).toContain('unknown reward "lenght": here: did you mean length?');
    expect(fails(3)).toContain("reward expects names, given 3: here");
    expect(fails([])).toContain("reward names none");
    expect(fails([["length"]])).toContain("reward expects names");
    expect(fails({ length: { wieght: 2 } })).toContain("unknown key wieght: here: did you mean weight?");
    expect(fails({ length: { weight: "2" } })).toContain('weight expects a number, given "2"');
    expect(fails({ length: { params: [1] } })).toContain("params expects names");
    expect(fails({ length: { params: { mx: 1 } } })).toContain("mx");
    expect(fails({ length: { as: "a/b" } })).toContain("as expects letters");
    expect(fails(["length", "length"])).toContain("reward length is named twice");
    expect(fails("./none.ts")).toContain("no such reward module ./none.ts: here");
    const line = file("recipe: arithmetic\nseed: 1\nreward: lenght\n");
    expect(failure(() => arithmetic(line))).toContain(`${line} line 3`);
    expect(failure(() => arithmetic(undefined, { reward: "length", correct_reward: "2" }))).toContain(
      "last_integer",
    );
  });
});
