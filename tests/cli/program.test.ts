import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { version } from "../../package.json";
import { BENCH_NAMES } from "../../src/config/schema-inference.ts";

const main = resolve(import.meta.dir, "../../src/cli/main.ts");
const scratch = mkdtempSync(join(tmpdir(), "rlv-cli-"));
// Bun keeps a cache in HOME.
const home = mkdtempSync(join(tmpdir(), "rlv-home-"));
afterAll(() => {
  for (const dir of [scratch, home]) rmSync(dir, { recursive: true, force: true });
});

interface Result {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

function rlv(argv: readonly string[], env: Record<string, string> = {}): Result {
  const result = Bun.spawnSync([process.execPath, main, ...argv], {
    cwd: scratch,
    env: { PATH: "", HOME: home, ...env },
    stdin: "ignore",
  });
  return { code: result.exitCode, out: result.stdout.toString(), err: result.stderr.toString() };
}

describe("bad usage: exit 2, one line on stderr, nothing on stdout, nothing written", () => {
  writeFileSync(join(scratch, "bad.yaml"), "seed: 1\nlerning_rate: 3\n");
  writeFileSync(join(scratch, "prompts.jsonl"), '{"prompt": "1 + 1"}\n');
  mkdirSync(join(scratch, "model"));
  const before = readdirSync(scratch).sort();
  const cases: [line: string, parts: string[]][] = [
    ["trian", ['unknown command "trian"', "did you mean rlv train?"]],
    ["--bogus", ["unknown flag --bogus"]],
    ["train arithmatic", ['unknown recipe "arithmatic"', "did you mean arithmetic?"]],
    ["train nonsense", ['unknown recipe "nonsense"', "the recipes are arithmetic, sft"]],
    ["train --lerning_rate 3", ["unknown flag --lerning_rate", "did you mean --learning_rate?"]],
    ["train --learning_rate fast", ['learning_rate expects a number, at least 0, given "fast"']],
    ["train --num_train_steps 1.5", ["num_train_steps expects a whole number"]],
    ["train --seed", ["--seed needs a value"]],
    ["train --seed 1 --seed 2", ["--seed is given twice"]],
    ["train --epochs 3", ["unknown flag --epochs"]],
    ["train bad.yaml", ["unknown key lerning_rate", "bad.yaml line 2", "did you mean learning_rate?"]],
    ["train none.yaml", ["no such config file", "none.yaml"]],
    ["train --loss_type cispo", ["epsilon_high", "at least 1"]],
    ["train --output_dir bad.yaml/runs", ["output folder cannot be written", "a part of it is a file"]],
    ["train --model nowhere", ["no such folder", "nowhere"]],
    ["train --train_file nowhere.jsonl", ["no such file", "nowhere.jsonl"]],
    ["train --resume_from nowhere", ["no such checkpoint", "nowhere"]],
    ["train --resume_from model", ["not a checkpoint", "train_config.json"]],
    ["train --run_name a/b", ["run_name"]],
    ["train arithmetic more", ['unexpected argument "more"']],
    ["generate", ["model is missing", "give --model"]],
    ["generate --model model --in none.jsonl --out o.jsonl", ["no such file", "none.jsonl"]],
    ["generate --model none --in prompts.jsonl --out o.jsonl", ["no such folder", "none"]],
    ["generate --model model --in prompts.jsonl --out prompts.jsonl", ["overwrite its own input"]],
    ["generate --model model --in prompts.jsonl --out bad.yaml/o.jsonl", ["cannot be written"]],
    ["logprob --model model --in model --out o.jsonl", ["this is a folder"]],
    ["chat model --model model", ["given twice"]],
    ["bench gpro", ['unknown bench "gpro"', "did you mean grpo?"]],
    ["bench decode --group 3", ["unknown flag --group"]],
    ["version 1", ['unexpected argument "1"']],
    ["__engine", ["started by rlv train"]],
  ];
  test.each(cases)("rlv %s", (line, parts) => {
    const { code, out, err } = rlv(line.split(" "));
    expect(err).toStartWith("rlv: error: ");
    expect(err.trimEnd()).not.toContain("\n");
    for (const part of parts) expect(err).toContain(part);
    expect(out).toBe("");
    expect(code).toBe(2);
    expect(readdirSync(scratch).sort()).toEqual(before);
  });
});

test("RLV_DEBUG=1 shows the stack, otherwise none", () => {
  expect(rlv(["trian"], { RLV_DEBUG: "1" }).err).toContain("main.ts:");
  expect(rlv(["trian"]).err).not.toContain("main.ts");
});

describe("help", () => {
  const commands = ["train", "generate", "logprob", "chat", "download", "bench", "doctor", "version"];
  test("of the program: every command and the exit codes", () => {
    for (const argv of [[], ["--help"], ["-h"], ["help"]]) {
      const { code, out, err } = rlv(argv);
      expect([code, err]).toEqual([0, ""]);
      expect(out.split("\n")[0]).toContain("$ rlv train");
      for (const name of commands) expect(out).toMatch(new RegExp(`^  ${name}`, "m"));
      expect(out).toContain("130");
    }
  });
  test.each([...commands, "train sft", ...BENCH_NAMES.map((name) => `bench ${name}`)])(
    "rlv %s --help: an example first, nothing on stderr",
    (line) => {
      const { code, out, err } = rlv([...line.split(" "), "--help"]);
      expect([code, err]).toEqual([0, ""]);
      expect(out.split("\n")[0]).toStartWith(`  $ rlv ${line.split(" ")[0]}`);
      expect(out).toContain("usage: rlv ");
      for (const row of out.split("\n")) expect(row.length).toBeLessThanOrEqual(118);
    },
  );
  test("train: the flags of the recipe with the values it starts from", () => {
    const { out } = rlv(["train", "--help"]);
    expect(out).toContain("--kl_coeff X  [");
    expect(out).toContain("--loss_type reinforce_kl2|grpo|bnpo|");
    expect(out).toContain("[reinforce_kl2]");
    expect(out).not.toContain("--train_on_prompt");
    expect(rlv(["train", "sft", "--help"]).out).toContain("--train_on_prompt true|false  [false]");
    expect(rlv(["help", "train"]).out).toBe(out);
  });
});

describe("version", () => {
  test("in words and as one JSON object", () => {
    expect(rlv(["version"]).out).toBe(`rlv ${version}\n`);
    expect(rlv(["--version"]).out).toBe(`rlv ${version}\n`);
    const { out } = rlv(["version", "--json"]);
    expect(JSON.parse(out)).toMatchObject({ version, standalone: false, platform: process.platform });
    expect(out.trimEnd()).not.toContain("\n");
  });
  test("loads neither the schemas nor the native library", () => {
    const loaded = Bun.spawnSync(
      [
        process.execPath,
        "-e",
        `process.argv.splice(1, 9, "", "version"); await import(${JSON.stringify(main)}); await Bun.sleep(20); console.log(Object.keys(require.cache).join("\\n"))`,
      ],
      { cwd: scratch },
    ).stdout.toString();
    expect(loaded).toContain("version");
    expect(loaded).not.toContain("node_modules/zod");
    expect(existsSync(join(scratch, ".cache"))).toBe(false);
  });
});
