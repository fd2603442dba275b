import * as z from "zod";
import { field, int, orNone, text } from "./fields.ts";
import { slurmKeys } from "./schema-slurm.ts";

/** Options of `rlv sweep` itself; a sweep file may give some of them too. */
export const sweepSchema = z.strictObject({
  name: field(
    orNone(text()),
    null,
    "name of the sweep's folder; none = that of the sweep file, else the recipe and a hash of the plan",
  ),
  output_dir: field(
    orNone(text()),
    null,
    "the sweep goes to OUTPUT_DIR/NAME; none = where the recipe keeps its runs",
  ),
  per_device: field(
    orNone(int(1, 1024)),
    null,
    "runs at once; none = one a core on the CPU device, as far as memory goes, and one on a GPU",
    { aliases: ["per_gpu"] },
  ),
  threads: field(
    orNone(int(1, 1024)),
    null,
    "CPU threads of each run; none = the cores divided by the runs at once. Never changes a result",
  ),
  eval: field(
    z.boolean(),
    true,
    "evaluate the final checkpoint of each run as rlv eval does, and keep that in its folder; --no_eval leaves it out",
  ),
  retry: field(
    z.boolean(),
    true,
    "a sweep that is started again tries again what failed; one that diverged would diverge again and is left",
  ),
  dry_run: field(z.boolean(), false, "print the plan and make nothing"),
  only: field(
    orNone(text()),
    null,
    "of a sweep's folder: run the run of this name alone, as a task of Slurm does",
  ),
  ...slurmKeys,
});
export type SweepOptions = Readonly<z.output<typeof sweepSchema>>;

/** Keys of a sweep file beside recipe, fixed, variants and grid: options above. */
export const SWEEP_FILE_OPTIONS: readonly string[] = [
  ...["name", "output_dir", "per_device", "threads"],
  ...Object.keys(slurmKeys).filter((key) => key.startsWith("slurm_")),
];
