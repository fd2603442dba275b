import * as z from "zod";
import { field, int, orNone, text } from "./fields.ts";

/** Keys of `rlv sweep` that say how Slurm runs it. */
export const slurmKeys = {
  slurm: field(
    z.boolean(),
    false,
    "run the sweep as an array of jobs under Slurm; called again it looks on, or submits what is missing",
  ),
  no_wait: field(z.boolean(), false, "under Slurm: return as soon as the jobs are submitted"),
  slurm_partition: field(orNone(text()), null, "Slurm's partition; none = its default"),
  slurm_account: field(orNone(text()), null, "the account that Slurm charges; none = its default"),
  slurm_time: field(
    orNone(text()),
    null,
    "time limit of a task, as sbatch takes it (90, 1:30:00, 2-12); a run saves before it and goes on in another turn",
  ),
  slurm_mem: field(orNone(text()), null, "memory of a task, as sbatch takes it (4G)"),
  slurm_cpus: field(int(1, 1024), 1, "CPUs of a task, which are the threads of its run"),
  slurm_limit: field(orNone(int(1)), null, "most tasks at a time; none = as many as Slurm grants"),
  slurm_signal: field(int(1, 65_535), 120, "seconds before the time limit at which a run is told to save"),
  slurm_args: field(orNone(text()), null, "further options of sbatch in one text, as in a job script"),
} as const;

export const slurmSchema = z.strictObject(slurmKeys);
export type SlurmConfig = Readonly<z.output<typeof slurmSchema>>;
