/** Ranks that Slurm starts, with a Slurm of its own on loopback: by PMIx for Open MPI, by PMI-2 for MPICH, and by neither. */
import { afterAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { noSlurm, SlurmRig } from "../sweep/slurm-rig.ts";
import { Jobs, type Launcher, MPICH, OPEN_MPI, relativeDifference, rolloutsOf, tensorsOf } from "./jobs.ts";

const rig = noSlurm === null && Bun.which("srun") !== null ? await SlurmRig.start(2) : null;
const jobs = new Jobs(rig?.env);
afterAll(async () => {
  jobs.close();
  await rig?.[Symbol.asyncDispose]();
});

const srun = (mpi: string): Launcher => ({
  name: `srun --mpi=${mpi}`,
  argv: (ranks) => ["srun", `--mpi=${mpi}`, "--quiet", "--ntasks", String(ranks), "--overcommit"],
});
/** Debian's plugin for PMIx loads a library that is in libpmix-dev. */
const starts = (mpi: string) => rig?.ask([...srun(mpi).argv(1), "echo", "here"]) === "here";

const policy = (name: string) => [
  ...["arithmetic", "--run_name", name, "--num_train_steps", "3", "--batch_size", "4"],
  ...["--group_size", "4", "--eval_steps", "-1"],
];

describe.skipIf(rig === null)(`ranks of srun (${noSlurm ?? "Slurm is here"})`, () => {
  const plugins: [string, boolean, Launcher | null, string][] = [
    ["pmix", starts("pmix"), OPEN_MPI, "Open MPI"],
    ["pmi2", starts("pmi2"), MPICH, "MPICH"],
  ];
  let one: ReturnType<Jobs["finish"]> | undefined;
  for (const [mpi, present, installed, library] of plugins)
    test.skipIf(!present || installed === null)(
      `${library} by --mpi=${mpi}${present ? "" : " (this Slurm does not start it)"}`,
      async () => {
        one ??= jobs.finish(null, 1, policy("one"));
        expect(await one).toMatchObject({ code: 0, err: "" });
        const { code, out, err } = await jobs.finish(srun(mpi), 2, policy(mpi));
        expect({ code, err }).toEqual({ code: 0, err: "" });
        expect(out).toContain(`2 ranks on 1 machine, ${library}`);
        expect(rolloutsOf(jobs.run(mpi)).map(({ completion }) => completion)).toEqual(
          rolloutsOf(jobs.run("one")).map(({ completion }) => completion),
        );
        const final = (name: string) => tensorsOf(join(jobs.run(name), "checkpoints/final"));
        expect(relativeDifference(final(mpi), final("one"))).toBeLessThan(1e-6);
      },
    );

  for (const by of [OPEN_MPI, MPICH])
    test.skipIf(by === null)(
      `tasks that cannot find each other: ${by?.name ?? "not installed"}`,
      async () => {
        const library = by === OPEN_MPI ? "libmpi.so.40" : "libmpich.so.12";
        const lost = new Jobs({ ...rig!.env, RLV_MPI_LIBRARY: library });
        const { code, err } = await lost.finish(srun("none"), 2, policy("lost"));
        lost.close();
        expect(code).toBe(1);
        expect(err).toMatch(
          /rlv: error: .*(2 processes that cannot find each other|2 processes were started, .* sees 1)/,
        );
        expect(err).toContain("give srun --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH)");
      },
    );
});
