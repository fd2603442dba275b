/**
 * Both processes of a run with a made-up training loop: `engine-fixture.ts MODE RUN` supervises, and prints its
 * outcome as JSON on stdout; started again as the engine it trains as MODE says.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Diverged, Interrupted, UsageError } from "../../src/core/errors.ts";
import { ENGINE_COMMAND } from "../../src/core/version.ts";
import { writeCheckpoint } from "../../src/io/checkpoint-folder.ts";
import { serveEngine, superviseEngine, type Train } from "../../src/run/engine-process.ts";
import { openRunFolder } from "../../src/run/folder.ts";
import { openProgress } from "../../src/run/progress.ts";

interface Config {
  readonly mode: string;
  readonly steps: number;
}

const train: Train<Config> = async ({ mode, steps }, reporter, control) => {
  if (mode === "usage") throw new UsageError("broken line", "data.jsonl line 3", "mend it");
  reporter.plan({
    bytes: { weights: 4e6 },
    totalSteps: steps,
    startStep: 0,
    lines: ["a header"],
  });
  const save = (step: number, reason: "schedule" | "interrupt") => {
    const path = writeCheckpoint(join(control.runDir, "checkpoints"), `step-${step}`, (dir) => {
      writeFileSync(join(dir, "train_config.json"), control.checkpointConfig);
    });
    reporter.checkpoint({ step, path, reason });
  };
  for (let step = 1; step <= steps; step++) {
    await Bun.sleep(20);
    reporter.step({ step, metrics: { "train/reward_mean": step / 10 }, print: step % 2 === 0 });
    if (step === 2) save(step, "schedule");
    if (step === 3 && mode === "segfault") process.kill(process.pid, "SIGSEGV");
    if (step === 3 && mode === "silent") process.exit(7);
    if (step === 3 && mode === "defect") throw new TypeError("x is not a function");
    if (step === 3 && mode === "diverged")
      throw new Diverged("loss is NaN", `step ${step}`, "lower the rate");
    if (mode === "deaf") await Bun.sleep(60_000);
    if (control.stopRequested() !== "none") {
      save(step, "interrupt");
      throw new Interrupted(`interrupted after step ${step}`, control.runDir);
    }
  }
  // More than a pipe holds: nothing of it may be lost at the end.
  for (let i = 0; i < 200; i++)
    reporter.sample({ step: steps, prompt: "p\u001b[2J", completion: "c".repeat(2000), reward: i });
  reporter.done({
    step: steps,
    path: join(control.runDir, "checkpoints/final"),
    metrics: { "eval/reward": 0.9 },
  });
};

if (process.argv.at(-1) === ENGINE_COMMAND) serveEngine(train);
else {
  const [mode, run] = process.argv.slice(2) as [string, string];
  const folder = openRunFolder({
    outputDir: join(run, ".."),
    runName: run.split("/").at(-1)!,
    recipe: "fixture",
    resumeRun: null,
    elsewhere: true,
    now: new Date(),
  });
  const lines: string[] = [];
  const progress = openProgress({ write: (text) => lines.push(text) }, { write: () => {} });
  process.stderr.write("started\n");
  const outcome = await superviseEngine(
    [process.execPath, import.meta.path],
    {
      config: { mode, steps: mode === "quick" ? 6 : 400 },
      runDir: folder.dir,
      resumeFrom: null,
      checkpointConfig: "{}\n",
    },
    progress,
    folder.engineStarted,
  );
  folder.release();
  process.stdout.write(`${JSON.stringify({ ...outcome, lines })}\n`);
}
