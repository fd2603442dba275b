import { readFileSync } from "node:fs";
import { availableParallelism, homedir } from "node:os";
import { join } from "node:path";
import { UsageError } from "./errors.ts";

/**
 * Every environment variable rlv reads, in one place: nothing else in src/ touches process.env.
 * `rlv doctor` prints this table.
 */
export const ENVIRONMENT = {
  RLV_THREADS: "threads of the CPU device when --threads is not given (default: every core)",
  RLV_DEVICE: "device when --device is not given: auto, cpu, metal or soft",
  RLV_LIB_PATH: "native library to load instead of the built or embedded one",
  RLV_ISA:
    "instruction set of the CPU device instead of the best one: avx512bf16, avx512, avx2, neon, portable",
  RLV_METAL_TIMEOUT: "seconds after which a GPU that does not answer counts as lost (default 120)",
  RLV_METAL_BATCH:
    "GFLOP after which Metal gets a new command buffer (default 200); fewer if the system stops them",
  RLV_METAL_DIRECT:
    "0 or 1: whether Metal's products read operands straight from device memory (default: by chip)",
  RLV_SOFT_CHECK: "1: software Metal reports races, bounds, divergence and uninitialised memory",
  RLV_SOFT_SEED: "software Metal runs the threads of a group in an order drawn from this number",
  RLV_SOFT_THREADS: "threads that run software Metal's threadgroups (default: every core)",
  RLV_SOFT_MAX_THREADS: "threads that software Metal's pipelines allow in a group (default 1024)",
  RLV_PIN: "0: leave the placement of threads to the system",
  RLV_DEBUG: "1: print the stack behind an error line",
  DISPLAY: "where a browser can be opened on X11",
  WAYLAND_DISPLAY: "where a browser can be opened on Wayland",
  NO_COLOR: "set to anything: no colours",
  XDG_CACHE_HOME: "where the embedded native library and the hub's files are kept (default: ~/.cache)",
  XDG_STATE_HOME: "where the messages of earlier chats are kept (default: ~/.local/state)",
  HF_ENDPOINT: "address of the hub (default: https://huggingface.co)",
  HF_TOKEN: "token for the hub, before HF_TOKEN_PATH; sent to HF_ENDPOINT's own origin alone",
  HF_TOKEN_PATH: "file with the token (default: HF_HOME/token)",
  HF_HOME: "folder of the hub's token and cache (default: XDG_CACHE_HOME/huggingface)",
  HF_HUB_CACHE: "folder of downloaded models and datasets (default: HF_HOME/hub)",
  HF_HUB_OFFLINE: "1: never ask the hub, only its cache",
  PATH: "where Slurm's programs are looked for",
  RLV_MPI_LIBRARY: "libmpi to load instead of the one found by name",
  RLV_MPI_TIMEOUT: "seconds a process waits for the others before it ends the job (default 1800)",
  OMPI_COMM_WORLD_SIZE: "processes of the job, set by Open MPI's mpirun",
  PMI_SIZE: "processes of the job, set by MPICH's mpirun and by srun",
  PMIX_RANK: "place of this process in the job, set by PMIx",
  SLURM_STEP_NUM_TASKS: "processes of the job, set by srun",
  SLURM_JOB_ID: "the job of Slurm that this process belongs to",
  SLURM_CPUS_PER_TASK: "threads of the CPU device under Slurm, after --threads and RLV_THREADS",
} as const;
export type EnvironmentName = keyof typeof ENVIRONMENT;

/** The value of a registered variable; unset and empty are the same. */
export function environment(name: EnvironmentName): string | undefined {
  const value = process.env[name];
  return value === undefined || value === "" ? undefined : value;
}

export function debugging(): boolean {
  return environment("RLV_DEBUG") === "1";
}

/** Colours are for terminals, and only where NO_COLOR (no-color.org) allows them. */
export function colours(stream: { isTTY?: boolean }): boolean {
  return stream.isTTY === true && environment("NO_COLOR") === undefined;
}

/** The folder for files that can be made again: ${XDG_CACHE_HOME:-~/.cache}/rlv. */
export function cacheDir(): string {
  return join(environment("XDG_CACHE_HOME") ?? join(homedir(), ".cache"), "rlv");
}

/** The folder for what a person would miss but not much: ${XDG_STATE_HOME:-~/.local/state}/rlv. */
export function stateDir(): string {
  return join(environment("XDG_STATE_HOME") ?? join(homedir(), ".local", "state"), "rlv");
}

/** Where the hub is and what it is told, as Python's huggingface_hub reads it from the environment. */
export interface HubSettings {
  readonly endpoint: string;
  /** Folder of models--ORG--NAME and datasets--ORG--NAME. */
  readonly cache: string;
  readonly token: string | null;
  readonly offline: boolean;
}

export function hubSettings(): HubSettings {
  const home =
    environment("HF_HOME") ?? join(environment("XDG_CACHE_HOME") ?? join(homedir(), ".cache"), "huggingface");
  return {
    endpoint: hubEndpoint(),
    cache: environment("HF_HUB_CACHE") ?? join(home, "hub"),
    token: hubToken(environment("HF_TOKEN_PATH") ?? join(home, "token")),
    offline: /^(1|on|yes|true)$/i.test(environment("HF_HUB_OFFLINE") ?? ""),
  };
}

function hubEndpoint(): string {
  const text = environment("HF_ENDPOINT") ?? "https://huggingface.co";
  const url = URL.parse(text);
  if (url === null || !/^https?:$/.test(url.protocol))
    throw new UsageError(
      `HF_ENDPOINT=${text}`,
      "environment",
      "give an address such as https://huggingface.co",
    );
  return text.replace(/\/+$/, "");
}

function hubToken(file: string): string | null {
  let token = environment("HF_TOKEN");
  try {
    token ??= readFileSync(file, "utf8");
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return null;
    throw new UsageError(
      `the hub's token cannot be read (${code})`,
      file,
      "set HF_TOKEN, or change the file's permissions",
    );
  }
  const trimmed = token.trim();
  if (!/^[!-~]*$/.test(trimmed))
    throw new UsageError("the hub's token has characters that no token has", "HF_TOKEN", "copy it again");
  return trimmed || null;
}

/**
 * Threads of the CPU device: --threads, else RLV_THREADS, else what Slurm granted, else every core
 * this process may use. The number never changes a result, only its speed.
 */
export function threadCount(configured: number | null): number {
  return (
    configured ??
    wholeNumber("RLV_THREADS") ??
    wholeNumber("SLURM_CPUS_PER_TASK") ??
    Math.max(1, availableParallelism())
  );
}

/** Who started this process as one of several that train together. */
export interface Launch {
  /** null: it does not say. */
  readonly processes: number | null;
  /** Whose libmpi fits: its name is tried first. */
  readonly mpi: "Open MPI" | "MPICH" | null;
  /** Whether it lets the processes find each other. srun --mpi=none does not. */
  readonly connects: boolean;
}

/** null: started by itself. A Slurm batch script is: its variables are there without srun. */
export function mpiLaunch(): Launch | null {
  const open = wholeNumber("OMPI_COMM_WORLD_SIZE", 1 << 20);
  if (open !== undefined) return { processes: open, mpi: "Open MPI", connects: true };
  const pmi = wholeNumber("PMI_SIZE", 1 << 20);
  if (pmi !== undefined) return { processes: pmi, mpi: "MPICH", connects: true };
  const slurm = wholeNumber("SLURM_STEP_NUM_TASKS", 1 << 20);
  const connects = environment("PMIX_RANK") !== undefined;
  return connects || (slurm ?? 1) > 1 ? { processes: slurm ?? null, mpi: null, connects } : null;
}

/** Seconds that a process of a job waits for the others. */
export function mpiTimeout(): number {
  return wholeNumber("RLV_MPI_TIMEOUT", 1 << 20) ?? 1800;
}

/** Threads of one of several processes on a machine: `share`, unless --threads or the environment say. */
export function threadsOfRank(configured: number | null, share: number): number {
  return configured ?? wholeNumber("RLV_THREADS") ?? wholeNumber("SLURM_CPUS_PER_TASK") ?? share;
}

function wholeNumber(name: EnvironmentName, most = 1024): number | undefined {
  const text = environment(name);
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < 1 || value > most)
    throw new UsageError(`${name}=${text}`, "environment", `give a whole number from 1 to ${most}`);
  return value;
}

export const DEVICES = ["auto", "cpu", "metal", "soft"] as const;
export type DeviceName = (typeof DEVICES)[number];

/** The device asked for: --device, else RLV_DEVICE, else auto. */
export function deviceChoice(configured: DeviceName): DeviceName {
  const text = environment("RLV_DEVICE");
  if (configured !== "auto" || text === undefined) return configured;
  const device = DEVICES.find((name) => name === text);
  if (device === undefined)
    throw new UsageError(`RLV_DEVICE=${text}`, "environment", `one of ${DEVICES.join(", ")}`);
  return device;
}
