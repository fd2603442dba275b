/** Judges, reward models, routing and adapters on several ranks: rollouts, weights and metrics of one process. */
import { afterAll, describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { type Recipe, Subjects } from "../torture/subjects.ts";
import { Jobs, MPICH, metricsOf, OPEN_MPI, relativeDifference, rolloutsOf, tensorsOf } from "./jobs.ts";

const any = OPEN_MPI ?? MPICH;
const jobs = new Jobs();
const subjects = new Subjects();
afterAll(() => {
  jobs.close();
  subjects[Symbol.dispose]();
});

/** What a run trained: its weights or its adapters, by file. */
function trained(run: string): Map<string, Float32Array> {
  const final = join(run, "checkpoints/final");
  const files = readdirSync(final, { recursive: true }).map(String);
  const weights = files.filter((file) => /(^|\/)(adapter_)?model\.safetensors$/.test(file));
  return new Map(
    weights.flatMap((file) =>
      [...tensorsOf(join(final, dirname(file)), file.split("/").at(-1))].map(
        ([name, values]) => [`${file}: ${name}`, values] as const,
      ),
    ),
  );
}

// AdamW divides gradients by their own size: after 6 steps at the learning rate of the small world, 1e-3, the reward model
// of one process in other micro-batches differs by 2e-6.
const recipes: [Recipe, number][] = [
  ["values", 1e-6],
  ["stories, routed", 1e-6],
  ["hh-rm", 1e-5],
];
describe.skipIf(any === null)("recipes on two ranks (needs Open MPI or MPICH)", () => {
  test.each(recipes)("%s", async (recipe, most) => {
    const [one, two] = [1, 2].map((count) =>
      join(subjects.root, `${recipe.replaceAll(/\W+/g, "-")}-${count}`),
    );
    for (const [run, by] of [
      [one!, null],
      [two!, any],
    ] as const) {
      const command = await subjects.command(recipe, run.split("/").at(-1)!);
      const { code, err } = await jobs.command(by, 2, command);
      expect({ code, err }).toEqual({ code: 0, err: "" });
    }
    const [ours, theirs] = [trained(two!), trained(one!)];
    expect([...ours.keys()]).toEqual([...theirs.keys()]);
    expect(relativeDifference(ours, theirs)).toBeLessThan(most);
    expect(relativeDifference(ours, theirs)).toBeGreaterThan(0);
    const [rows, metrics] = [metricsOf(two!), metricsOf(one!)];
    expect(rows).toHaveLength(metrics.length);
    for (const [i, row] of metrics.entries())
      for (const [name, value] of Object.entries(row))
        if (typeof value === "number")
          expect([i, name, rows[i]![name]]).toEqual([i, name, expect.closeTo(value, 4)]);
    if (recipe === "hh-rm") return;
    const drawn = (run: string) =>
      rolloutsOf(run).map((row) => [
        row.step,
        row.prompt_index,
        row.rollout_index,
        row.completion,
        row.reward,
      ]);
    expect(drawn(two!)).toEqual(drawn(one!));
    expect(drawn(two!).length).toBeGreaterThan(0);
  });
});
