import * as z from "zod";
import { field, int, orNone, required, text } from "./fields.ts";

/** Options of `rlv runs`, by subcommand. */

const dirFlag = field(
  orNone(text()),
  null,
  "folders with runs, divided by commas; none = runs, checkpoints/rm and checkpoints/grpo",
);
const yesFlag = field(z.boolean(), false, "do it without asking");

export const runsSchemas = {
  list: z.strictObject({
    dir: dirFlag,
    tag: field(orNone(text()), null, "only runs with this tag"),
    state: field(
      orNone(z.enum(["live", "finished", "interrupted", "crashed", "diverged"])),
      null,
      "only runs in this state",
    ),
  }),
  show: z.strictObject({
    dir: dirFlag,
    metric: field(orNone(text()), null, "metric of the sparkline; none = the run's main one"),
  }),
  rename: z.strictObject({ dir: dirFlag }),
  tag: z.strictObject({
    dir: dirFlag,
    add: field(orNone(text()), null, "tags to add, divided by commas"),
    remove: field(orNone(text()), null, "tags to take away, divided by commas"),
  }),
  rm: z.strictObject({
    dir: dirFlag,
    checkpoint: field(orNone(text()), null, "delete this checkpoint of the run alone"),
    yes: yesFlag,
  }),
  prune: z.strictObject({
    dir: dirFlag,
    all: field(z.boolean(), false, "every run that is not live"),
    keep_last: field(int(0), 1, "keep this many of the newest step-N; final always stays"),
    keep_every: field(orNone(int(1)), null, "keep step-N where N is a multiple of this"),
    keep_best: field(orNone(text()), null, "keep the step-N at which this metric was best"),
    best: field(
      z.enum(["max", "min"]),
      "max",
      "whether the best value of --keep_best is its greatest or least",
    ),
    keep_broken: field(
      z.boolean(),
      false,
      "keep checkpoints that are not whole or were saved at a divergence",
    ),
    dry_run: field(z.boolean(), false, "say what would go and remove nothing"),
    yes: yesFlag,
  }),
  export: z.strictObject({
    dir: dirFlag,
    out: required(text(), "new folder for the model, config and metrics; or FILE.csv for the metrics"),
    checkpoint: field(orNone(text()), null, "checkpoint to take; none = final, or the newest whole one"),
  }),
} as const;

export type RunsAction = keyof typeof runsSchemas;
export type RunsOptions<Action extends RunsAction> = Readonly<z.output<(typeof runsSchemas)[Action]>>;
export const RUNS_ACTIONS = Object.keys(runsSchemas) as RunsAction[];
