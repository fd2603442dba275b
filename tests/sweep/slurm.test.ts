/** A sweep on a real Slurm: an array of four runs, of which two lose their places in the middle. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { digest, rlv } from "../run/program.ts";
import { noSlurm, SlurmRig } from "./slurm-rig.ts";

const SETTINGS: Readonly<Record<string, string>> = {
  ...{ num_train_steps: "25", batch_size: "4", group_size: "8", save_every: "1", keep_checkpoints: "2" },
  ...{ eval_every: "-1", eval_num_prompts: "8" },
};

describe.skipIf(noSlurm !== null)(
  `a sweep on a real Slurm${noSlurm === null ? "" : ` (skipped: ${noSlurm})`}`,
  () => {
    const scratch = mkdtempSync(join(tmpdir(), "rlv-slurm-test-"));
    // What Slurm and shells take for something else.
    const name = 'it\'s a %j "sweep" #';
    const folder = join(scratch, name);
    let rig: SlurmRig;
    beforeAll(async () => {
      rig = await SlurmRig.start(4);
    }, 60_000);
    afterAll(async () => {
      await rig?.[Symbol.asyncDispose]();
      rmSync(scratch, { recursive: true, force: true });
    });

    const sweep = (...args: string[]) =>
      rlv(
        [
          ...["sweep", "arithmetic", "--grid", "seed=1,2,3,4", "--output_dir", scratch],
          ...["--name", name, "--slurm", "--slurm_limit", "3"],
          ...["--fixed", ...Object.entries(SETTINGS).map(([key, value]) => `${key}=${value}`)],
          ...args,
        ],
        rig.env,
      );
    const run = (seed: number) => join(folder, `arithmetic_seed${seed}`);
    const final = (seed: number) => join(run(seed), "checkpoints/final");
    const saved = (seed: number) =>
      existsSync(join(run(seed), "checkpoints")) &&
      readdirSync(join(run(seed), "checkpoints")).some((each) => each.startsWith("step-"));
    const jobs = () =>
      JSON.parse(readFileSync(join(folder, "slurm/jobs.json"), "utf8")) as {
        job: string;
        runs: Record<string, string>;
      }[];
    const until = async (holds: () => boolean) => {
      for (const end = performance.now() + 30_000; !holds(); await Bun.sleep(20))
        if (performance.now() > end) throw new Error(`it did not come about: ${holds}\n${rig.logs()}`);
    };

    test("tasks that lose their places go on where they saved, to the same bytes", async () => {
      const going = sweep();
      // Slurm takes one place; another is warned as before a time limit, and asks for another turn itself.
      await until(() => saved(1));
      const { job } = jobs()[0]!;
      expect(rig.ask(["scontrol", "requeue", `${job}_0`])).toBe("");
      await until(() => saved(2));
      rig.ask(["scancel", "--batch", "--signal=USR1", `${job}_1`]);
      const { out, err, code } = await going;
      expect([err, code], out).toEqual(["", 0]);
      expect(out).toContain(`submitted job ${job} with 4 runs`);
      for (const [index, seed] of [1, 2, 3, 4].entries()) {
        const log = readFileSync(join(folder, `slurm/${job}_${index}.log`), "utf8");
        // The first line of a turn.
        expect(log.match(/^run arithmetic_seed/gm)).toHaveLength(seed < 3 ? 2 : 1);
      }
      const summary = JSON.parse(readFileSync(join(folder, "summary.json"), "utf8")) as {
        runs: { state: string; metrics: Record<string, number> }[];
      };
      expect(summary.runs.map(({ state }) => state)).toEqual(Array(4).fill("finished"));
      // Its task evaluated it.
      for (const { metrics } of summary.runs) expect(metrics["final/reward"]).toBeNumber();
      const whole = await rlv([
        ...["train", "arithmetic", "--seed", "1", "--output_dir", scratch, "--run_name", "whole"],
        ...Object.entries(SETTINGS).flatMap(([key, value]) => [`--${key}`, value]),
      ]);
      expect(whole.err).toBe("");
      expect(digest(final(1))).toEqual(digest(join(scratch, "whole/checkpoints/final")));
    }, 120_000);

    test("called again: nothing to do; then only what is missing, and it looks on at what is under way", async () => {
      const weights = digest(final(2));
      const again = await sweep();
      expect([again.err, again.code, jobs().length]).toEqual(["", 0, 1]);
      rmSync(run(2), { recursive: true });
      const left = await sweep("--no_wait");
      expect([left.err, left.code]).toEqual(["", 0]);
      expect(jobs().map(({ runs }) => Object.values(runs))).toEqual([
        [1, 2, 3, 4].map((seed) => `arithmetic_seed${seed}`),
        ["arithmetic_seed2"],
      ]);
      const attached = await sweep();
      expect([attached.err, attached.code]).toEqual(["", 0]);
      expect(attached.out).toContain(`job ${jobs()[1]!.job} is under way with 1 run`);
      expect(jobs()).toHaveLength(2);
      // Warned and requeued, or in one piece: the same run.
      expect(digest(final(2))).toEqual(weights);
    }, 60_000);

    test("what Slurm refuses is said in its words, and nothing is recorded", async () => {
      rmSync(run(3), { recursive: true });
      const { err, code } = await sweep("--slurm_partition", "no where");
      expect(code).toBe(1);
      expect(err).toContain("sbatch refused the job: invalid partition specified: no where");
      expect(jobs()).toHaveLength(2);
    });
  },
);
