import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { parse, protect, tokenize } from "../../src/cli/argv.ts";
import { type Command, type Flag, JSON_FLAG } from "../../src/cli/command.ts";
import { UsageError } from "../../src/core/errors.ts";

const flag = (name: string, boolean = false, aliases: string[] = []): Flag => ({
  name,
  aliases,
  boolean,
  value: boolean ? "true|false" : "X",
  description: name,
  fallback: undefined,
});
const FLAGS = [
  flag("run_name"),
  flag("eval_every", false, ["eval_steps"]),
  flag("learning_rate", false, ["lr"]),
  flag("gradient_checkpointing", true),
  JSON_FLAG,
];
const command: Command = {
  name: "demo",
  usage: "demo [THING]",
  maxArgs: 1,
  summary: "a command for this test",
  examples: () => [],
  flags: () => FLAGS,
  run: async () => 0,
};
const read = (...argv: string[]) => parse(command, argv, FLAGS);
const values = (...argv: string[]) => Object.fromEntries(read(...argv).flags);

describe("values arrive as they were typed", () => {
  test.each([
    "007",
    "1e5",
    "-1",
    "-.5",
    "0x10",
    "true",
    "a=b=c",
    "=",
    "",
    " ",
    "Infinity",
    "--",
    "-",
    "1_000",
    "--looks-like-a-flag",
  ])("%j after =", (value) => {
    expect(values(`--run_name=${value}`)).toEqual({ run_name: value });
  });
  test.each(["007", "1e5", "-1", "-.5", "-1e-6", "true", "a=b", "-"])("%j as the next word", (value) => {
    expect(values("--run_name", value)).toEqual({ run_name: value });
  });
  test("any text survives, through cac too", () => {
    fc.assert(
      fc.property(fc.string(), fc.string({ minLength: 1 }), (value, arg) => {
        const parsed = read(`--run-name=${value}`, "--", arg);
        expect(parsed.flags.get("run_name")).toBe(value);
        expect(parsed.args).toEqual([arg]);
      }),
    );
  });
});

describe("spelling", () => {
  test("--a_b and --a-b, --flag value and --flag=value are the same", () => {
    for (const argv of [
      ["--eval_every", "5"],
      ["--eval-every", "5"],
      ["--eval_every=5"],
      ["--eval-every=5"],
      ["--eval-steps", "5"],
    ])
      expect(values(...argv)).toEqual({ eval_every: "5" });
  });
  test("booleans stand alone, take true or false, and negate", () => {
    expect(values("--gradient_checkpointing")).toEqual({ gradient_checkpointing: "true" });
    expect(values("--gradient-checkpointing", "false")).toEqual({ gradient_checkpointing: "false" });
    expect(values("--no-gradient-checkpointing")).toEqual({ gradient_checkpointing: "false" });
    const mixed = read("--gradient_checkpointing", "thing");
    expect(mixed.args).toEqual(["thing"]);
    expect(Object.fromEntries(mixed.flags)).toEqual({ gradient_checkpointing: "true" });
  });
  test("--json is the command's own", () => {
    expect(read("--json").json).toBe(true);
    expect(read("--json", "false").json).toBe(false);
    expect(read("--json").flags.size).toBe(0);
    expect(() => read("--json=maybe")).toThrow("--json expects true or false");
  });
  test("arguments stay text", () => {
    expect(read("007").args).toEqual(["007"]);
    expect(read("--lr", "1", "-1").args).toEqual(["-1"]);
  });
});

describe("refused", () => {
  const cases: [argv: string[], message: string][] = [
    [["--eval_evry", "3"], "did you mean --eval_every?"],
    [["--Eval-Every", "3"], "did you mean --eval_every?"],
    [["--zzzzzz"], "rlv demo --help lists the flags"],
    [["-eval_every", "3"], "unknown flag -eval_every"],
    [["--lr"], "--learning_rate needs a value"],
    [["--lr", "--json"], "--learning_rate needs a value"],
    [["--lr", "1", "--learning-rate", "2"], "--learning_rate is given twice"],
    [["a", "b"], 'unexpected argument "b"'],
  ];
  test.each(cases)("%j", (argv, message) => {
    expect(() => read(...argv)).toThrow(UsageError);
    expect(() => read(...argv)).toThrow(message);
  });
});

test("what cac gets has no value that it could take for a number", () => {
  const words = protect("demo", tokenize(["--lr", "1e5", "thing", "--no-json"], FLAGS, "demo"));
  expect(words).toEqual(["", "", "demo", "--learning_rate==1e5", "--json==false", "--", "thing"]);
});
