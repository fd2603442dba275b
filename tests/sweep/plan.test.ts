/** Plans of sweeps: which runs, under which names, and what is refused before anything starts. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { UsageError } from "../../src/core/errors.ts";
import { differences, planSweep, product } from "../../src/sweep/plan.ts";
import { rawValues, readRequest } from "../../src/sweep/request.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-sweep-plan-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

function file(text: string, name = "sweep.yaml"): string {
  const path = join(scratch, name);
  writeFileSync(path, text);
  return path;
}
const plan = (target: string, grid: string[], fixed: string[] = []) =>
  planSweep(readRequest(target, grid, fixed), null, null);
const refused = (...args: Parameters<typeof plan>): string => {
  try {
    plan(...args);
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    return (error as Error).message;
  }
  throw new Error("nothing was refused");
};

test("a product has every combination once, the last axis fastest", () => {
  fc.assert(
    fc.property(fc.array(fc.uniqueArray(fc.nat(), { maxLength: 4 }), { maxLength: 4 }), (axes) => {
      const rows = product(axes);
      expect(rows.length).toBe(axes.reduce((n, axis) => n * axis.length, 1));
      expect(new Set(rows.map(String)).size).toBe(rows.length);
      // The place of a row, read as digits of a number, is the row.
      for (const [i, row] of rows.entries()) {
        let rest = i;
        for (let axis = axes.length - 1; axis >= 0; axis--) {
          const digits = axes[axis]!;
          expect(row[axis]).toBe(digits[rest % digits.length]);
          rest = Math.floor(rest / digits.length);
        }
      }
    }),
  );
});

test("names are distinct, stable, and fit for folders, whatever varies", () => {
  const axes = fc.record({
    seed: fc.uniqueArray(fc.nat(99), { minLength: 1, maxLength: 3 }),
    beta: fc.uniqueArray(fc.constantFrom("0.01", "0.02", "1e-3"), { minLength: 1, maxLength: 3 }),
    // Which a story run's own name does not say.
    save_steps: fc.uniqueArray(fc.constantFrom("5", "10", "-1"), { minLength: 1, maxLength: 3 }),
    model: fc.uniqueArray(fc.constantFrom("a/one", "b/one", "b/One"), { minLength: 1, maxLength: 3 }),
  });
  fc.assert(
    fc.property(axes, (grid) => {
      const words = Object.entries(grid).map(([key, values]) => `${key}=${values.join(",")}`);
      const runs = plan("stories", words).runs;
      const names = runs.map(({ name }) => name);
      expect(names.length).toBe(Object.values(grid).reduce((n, values) => n * values.length, 1));
      expect(new Set(names.map((name) => name.toLowerCase())).size).toBe(names.length);
      for (const name of names) expect(name).toMatch(/^[\w][\w.+-]{0,199}$/);
      expect(plan("stories", words).runs.map(({ name }) => name)).toEqual(names);
      for (const { values, settings } of runs)
        expect(settings as unknown as Record<string, unknown>).toMatchObject(values);
    }),
    { numRuns: 30 },
  );
});

test("a sweep file: variants times grid over what is fixed; flags override it", () => {
  const recipe = file(
    "recipe: stories\nlr: 3.0e-4\nreward: [{ name: happy_count, weight: 2 }]\n",
    "base.yaml",
  );
  expect(recipe).toContain("base.yaml");
  const path = file(`
recipe: base.yaml
name: mine
per_device: 3
fixed: { max_steps: 7, detector: { name: repetition, params: { least: 2 } } }
variants:
  routed: { routing: classic, lora_config: r8 }
  plain: { lora_rank: 16, lora_alpha: 32 }
grid: { seed: [1, 2] }
`);
  const request = readRequest(path, [], []);
  expect(Object.fromEntries(request.options)).toEqual({ name: "mine", per_device: "3" });
  const { runs, folder } = planSweep(request, "mine", scratch);
  expect(folder).toBe(join(scratch, "mine"));
  expect(runs.map(({ name, variant, values }) => [name, variant, values])).toEqual([
    ["routed_seed1", "routed", { seed: 1 }],
    ["routed_seed2", "routed", { seed: 2 }],
    ["plain_seed1", "plain", { seed: 1 }],
    ["plain_seed2", "plain", { seed: 2 }],
  ]);
  expect(runs[3]!.settings).toMatchObject({
    ...{ recipe: "stories", lr: 3e-4, max_steps: 7, seed: 2, lora_rank: 16, lora_config: null },
    reward: [{ name: "happy_count", weight: 2 }],
    detector: { name: "repetition", params: { least: 2 } },
    ...{ output_dir: join(scratch, "mine"), run_name: "plain_seed2" },
  });
  const short = planSweep(readRequest(path, ["beta=0.1,0.2"], ["max_steps=1", "seed=5"]), null, scratch);
  expect(short.runs.map(({ name }) => name)).toEqual([
    ...["routed_beta0.1", "routed_beta0.2", "plain_beta0.1", "plain_beta0.2"],
  ]);
  expect(short.runs[0]!.settings).toMatchObject({ max_steps: 1, seed: 5 });
});

test("the default name stands for the plan", () => {
  const name = (...args: Parameters<typeof plan>) => plan(...args).name;
  expect(name("arithmetic", ["seed=1,2"])).toBe(name("arithmetic", ["seed=1,2"]));
  expect(name("arithmetic", ["seed=1,2"])).not.toBe(name("arithmetic", ["seed=1,3"]));
  expect(name("arithmetic", ["seed=1,2"], ["num_train_steps=9"])).not.toBe(name("arithmetic", ["seed=1,2"]));
  expect(name("arithmetic", ["seed=1,2"])).toMatch(/^arithmetic-sweep-[0-9a-f]{6}$/);
});

test("what is no plan is refused, naming key and place", () => {
  expect(refused("arithmetic", ["sed=1"])).toBe("unknown key sed: --grid sed=1: did you mean seed?");
  expect(refused("arithmetic", ["seed=1,x"])).toStartWith("seed expects a whole number");
  expect(refused("arithmetic", ["seed="])).toContain("seed has no values");
  expect(refused("arithmetic", ["seed=1,,2"])).toContain("empty value");
  expect(refused("arithmetic", ["seed=1"], ["seed=2"])).toStartWith("seed is both in the grid and fixed");
  expect(refused("arithmetic", ["seed=1", "seed=2"])).toStartWith("seed is given twice");
  expect(refused("arithmetic", ["lr=1e-4", "learning_rate=1e-5"])).toContain("given twice");
  expect(refused("arithmetic", ["lr=1e-4,0.0001"])).toStartWith("two runs have the same settings");
  expect(refused("arithmetic", ["seed=1"], ["run_name=x"])).toContain("--name names the sweep");
  expect(refused("arithmetic", ["threads=1,2"])).toContain("--threads");
  expect(refused("arithmetic", [])).toStartWith("nothing varies");
  expect(refused("arithmetic", ["seed"])).toContain("expects KEY=VALUE");
  expect(refused("stories", ["routing=classic"])).toContain("needs retain and forget adapters");
  const all = Array.from({ length: 101 }, (_, i) => i).join();
  expect(refused("arithmetic", [`seed=${all}`, `num_train_steps=${all}`])).toContain("10201 runs");
  expect(refused(file("recipe: stories\ngrid: { seed: 3 }\n"), [])).toContain("expects a list");
  expect(refused(file("recipe: stories\ngrid: { seed: [] }\n"), [])).toContain("no values");
  expect(refused(file("recipe: stories\ngrid: { seed: [1] }\nmax_steps: 3\n"), [])).toContain(
    "unknown key max_steps of a sweep file",
  );
  expect(refused(file("grid: { seed: [1] }\n"), [])).toContain("recipe is missing");
  expect(refused(file("recipe: stories\nvariants: { a/b: {} }\n"), [])).toContain("not the name of a folder");
  const both = "recipe: stories\nfixed: { lora_rank: 4 }\nvariants: { a: { lora_rank: 8 } }\n";
  expect(refused(file(both), [])).toContain("lora_rank is in variant a and in");
});

test("commas in brackets and quotes divide nothing", () => {
  expect(rawValues("a,[b, c],{x: 1, y: [2,3]}", "k", "w")).toEqual(["a", "[b, c]", "{x: 1, y: [2,3]}"]);
  expect(rawValues('["a,b]",c],d', "k", "w")).toEqual(['["a,b]",c]', "d"]);
  const { runs } = plan("stories", ["reward=happy_count,[happy_binary, happy_count]"]);
  expect(runs.map(({ settings }) => (settings as { reward: unknown[] }).reward.length)).toEqual([1, 2]);
});

test("settings differ by what a run computes, not by where it lies", () => {
  const a = { seed: 1, reward: [{ name: "x" }], output_dir: "a", threads: 1, rlv_version: "1" };
  expect(differences(a, { ...a, output_dir: "b", threads: null, rlv_version: "2" })).toEqual([]);
  expect(differences(a, { ...a, reward: [{ name: "y" }] })).toEqual(["reward"]);
  expect(differences(a, { ...a, more: 1 })).toEqual(["more"]);
});
