import type { DoctorCheck } from "../config/contracts.ts";
import { environment } from "../core/env.ts";
import { messageLine } from "../core/errors.ts";
import { loadMpi } from "../device/mpi.ts";

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

/** The kind of MPI that starts processes here; null if it does not say. */
function kindOf(said: string): "Open MPI" | "MPICH" | null {
  if (/Open MPI|PRRTE/i.test(said)) return "Open MPI";
  return /hydra/i.test(said) ? "MPICH" : null;
}

/** The program that starts several processes and the library that joins them, which must be of one kind. */
export function mpi(): DoctorCheck {
  const name = "MPI";
  const program = Bun.which("mpirun");
  const kind = program === null ? null : kindOf(saidBy(program, ["--version"]) ?? "");
  const install =
    process.platform === "darwin" ? "brew install open-mpi" : "apt install openmpi-bin, or load its module";
  let library: ReturnType<typeof loadMpi>;
  try {
    library = loadMpi(kind);
  } catch (error) {
    // Without the native library nothing is loaded; that is a line of its own.
    library = { missing: messageLine(error) };
  }
  if (program === null && "missing" in library)
    return {
      name,
      status: "ok",
      detail: "none: a run is one process",
      remedy: `for more of them, ${install}`,
    };
  if ("missing" in library)
    return {
      name,
      status: "warn",
      detail: `${program}, and no library: ${library.missing}`,
      remedy: "add its folder to LD_LIBRARY_PATH, or name it in RLV_MPI_LIBRARY",
    };
  const found = `${library.version.split(",")[0]} (${library.library})`;
  if (program === null)
    return { name, status: "warn", detail: `${found}, and no mpirun on the PATH`, remedy: install };
  if (kind !== null && kind !== library.kind)
    return {
      name,
      status: "warn",
      detail: `${program} is ${kind}'s, the library is ${found}`,
      remedy: "name the libmpi of this mpirun in RLV_MPI_LIBRARY",
    };
  return { name, status: "ok", detail: `${program}, ${found}` };
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
