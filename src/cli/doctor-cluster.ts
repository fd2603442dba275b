import { existsSync, readdirSync, realpathSync } from "node:fs";
import { dirname, join } from "node:path";
import type { DoctorCheck } from "../config/contracts.ts";
import { environment } from "../core/env.ts";

/** Programs of a cluster answer at once or are not asked twice. */
const PATIENCE = 3000;

/** What a program says on stdout; null if it is absent, fails or hangs. */
function saidBy(program: string, args: readonly string[]): string | null {
  const path = Bun.which(program);
  if (path === null) return null;
  const { exitCode, stdout } = Bun.spawnSync([path, ...args], {
    stdin: "ignore",
    stderr: "ignore",
    timeout: PATIENCE,
  });
  return exitCode === 0 ? stdout.toString() : null;
}

type Kind = "Open MPI" | "MPICH";

/** The kind of MPI that a library is of: they name their binary interfaces 40 and 12. */
function kindOf(name: string): Kind | null {
  if (/^libmpich\b/.test(name) || /^libmpi\.(so\.12|12\.dylib)$/.test(name)) return "MPICH";
  return /^libmpi\.(so\.[48]0|[48]0\.dylib)$/.test(name) ? "Open MPI" : null;
}

/** Libraries of MPI where the loader looks, by their files' paths; none is loaded. */
function mpiLibraries(mpirun: string | null): ReadonlyMap<string, Kind> {
  const found = new Map<string, Kind>();
  const take = (path: string) => {
    const kind = kindOf(path.slice(path.lastIndexOf("/") + 1));
    if (kind !== null && existsSync(path)) found.set(realpathSync(path), kind);
  };
  const listed = saidBy("/sbin/ldconfig", ["-p"]) ?? "";
  for (const [, path] of listed.matchAll(/ => (\/\S+)$/gm)) take(path!);
  const folders = [
    ...(environment("LD_LIBRARY_PATH") ?? "").split(":"),
    ...(mpirun === null ? [] : [join(dirname(mpirun), "../lib")]),
    ...["/usr/local/lib", "/opt/homebrew/lib"],
  ];
  for (const folder of folders)
    if (folder !== "" && existsSync(folder))
      for (const name of readdirSync(folder)) if (kindOf(name) !== null) take(join(folder, name));
  return found;
}

/** The program that starts several processes and the library that joins them, which must be of one kind. */
export function mpi(): DoctorCheck {
  const name = "MPI";
  const program = Bun.which("mpirun");
  const libraries = mpiLibraries(program);
  const install =
    process.platform === "darwin" ? "brew install open-mpi" : "apt install openmpi-bin, or load its module";
  if (program === null && libraries.size === 0)
    return {
      name,
      status: "ok",
      detail: "none: a run is one process",
      remedy: `for more of them, ${install}`,
    };
  const names = [...libraries].map(([path, kind]) => `${path} (${kind})`).join(", ");
  if (program === null)
    return { name, status: "warn", detail: `${names}, and no mpirun on the PATH`, remedy: install };
  const said = saidBy("mpirun", ["--version"]) ?? "";
  const kind: Kind | null = /Open MPI|PRRTE/i.test(said) ? "Open MPI" : /hydra/i.test(said) ? "MPICH" : null;
  if (libraries.size === 0)
    return {
      name,
      status: "warn",
      detail: `${program}, and no libmpi where the loader looks`,
      remedy: "add its folder to LD_LIBRARY_PATH",
    };
  const started = `${program}${kind === null ? "" : ` (${kind})`}`;
  if (kind !== null && ![...libraries.values()].includes(kind))
    return {
      name,
      status: "warn",
      detail: `${started} starts processes for another MPI than ${names}`,
      remedy: "install the library of the same kind",
    };
  return { name, status: "ok", detail: `${started}, ${names}` };
}

export function slurm(): DoctorCheck {
  const name = "Slurm";
  const job = environment("SLURM_JOB_ID");
  const version = saidBy("sinfo", ["--version"])?.trim();
  if (version === undefined)
    return job === undefined
      ? { name, status: "ok", detail: "none on this machine" }
      : {
          name,
          status: "warn",
          detail: `job ${job}, and no sinfo on the PATH`,
          remedy: "load the module of Slurm",
        };
  const inside = job === undefined ? "" : `, in job ${job}`;
  if (/\bUP\b/.test(saidBy("scontrol", ["ping"]) ?? ""))
    return { name, status: "ok", detail: `${version}, its controller answers${inside}` };
  return {
    name,
    status: "warn",
    detail: `${version}, and no controller answers${inside}`,
    remedy: "scontrol ping says why; jobs cannot be submitted from here",
  };
}
