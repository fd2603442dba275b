import { accessSync, constants, existsSync, readFileSync, statfsSync } from "node:fs";
import { availableParallelism, cpus, totalmem } from "node:os";
import { dirname } from "node:path";
import type { DoctorCheck, ProbeModule } from "../config/contracts.ts";
import {
  cacheDir,
  ENVIRONMENT,
  type EnvironmentName,
  environment,
  type HubSettings,
  hubSettings,
  threadCount,
} from "../core/env.ts";
import { messageLine } from "../core/errors.ts";
import { STANDALONE, VERSION } from "../core/version.ts";
import { ask, PATIENCE } from "../io/hub/request.ts";
import { bytesText } from "../run/reporter.ts";
import { type Command, JSON_FLAG, printJson } from "./command.ts";

export const command: Command = {
  name: "doctor",
  usage: "doctor",
  maxArgs: 0,
  summary: "check this machine and this installation",
  examples: () => ["rlv doctor", "rlv doctor --json"],
  notes: () => [
    "",
    "Lines begin with ok, warn or fail and end with a remedy. Exit code 1: something that training needs has failed.",
  ],
  flags: () => [JSON_FLAG],
  async run({ json }) {
    const { mpi, slurm } = await import("./doctor-cluster.ts");
    const checks = [
      ...machine(),
      ...places(),
      await hub(),
      mpi(),
      slurm(),
      ...settings(),
      ...(await devices()),
    ];
    const failed = checks.some((check) => check.status === "fail");
    if (json) printJson({ version: VERSION, ok: !failed, checks });
    else for (const check of checks) process.stdout.write(`${line(check)}\n`);
    return failed ? 1 : 0;
  },
};

function line(check: DoctorCheck): string {
  const remedy = check.remedy === undefined ? "" : `: ${check.remedy}`;
  return `${check.status.padEnd(5)}${check.name.padEnd(18)}${check.detail}${remedy}`;
}

function machine(): DoctorCheck[] {
  const processors = cpus();
  const kind = STANDALONE ? "standalone" : "from a clone";
  return [
    {
      name: "rlv",
      status: "ok",
      detail: `${VERSION}, ${kind}, Bun ${Bun.version}, ${process.platform} ${process.arch}`,
    },
    {
      name: "processor",
      status: "ok",
      detail: `${processors[0]?.model.trim() ?? "unknown"}, ${processors.length} cores`,
    },
    attempt("threads", threads),
    memory(),
  ];
}

/** What is needed to start at all, and the message of its error if it fails. */
function attempt(name: string, check: () => DoctorCheck): DoctorCheck {
  try {
    return check();
  } catch (error) {
    return { name, status: "fail", detail: messageLine(error) };
  }
}

function threads(): DoctorCheck {
  const name = "threads";
  const wanted = threadCount(null);
  const granted = Math.min(availableParallelism(), coresOfGroup());
  const detail = `${wanted} for the CPU device, ${granted} may run at once`;
  return wanted > granted
    ? { name, status: "warn", detail, remedy: `RLV_THREADS=${Math.max(1, Math.floor(granted))} is faster` }
    : { name, status: "ok", detail };
}

/** Text of a file of the kernel's; null where there is none. */
function kernelText(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}

/** Cores that the control group of a container may keep busy: https://docs.kernel.org/admin-guide/cgroup-v2.html */
function coresOfGroup(): number {
  const [quota, period] = (kernelText("/sys/fs/cgroup/cpu.max") ?? "max").trim().split(" ").map(Number);
  const cores = quota! / period!;
  return Number.isFinite(cores) && cores > 0 ? cores : Number.POSITIVE_INFINITY;
}

function memory(): DoctorCheck {
  const limit = Number(kernelText("/sys/fs/cgroup/memory.max")?.trim() || Number.NaN);
  const group = Number.isFinite(limit) && limit < totalmem();
  const whole = group ? limit : totalmem();
  const available = Number(
    /^MemAvailable:\s+(\d+) kB/m.exec(kernelText("/proc/meminfo") ?? "")?.[1] ?? Number.NaN,
  );
  const free = Number.isNaN(available) ? "" : `, ${bytesText(1024 * available)} available`;
  const detail = `${bytesText(whole)} in all${group ? " (limit of this container)" : ""}${free}`;
  return whole < 1e9 || 1024 * available < 5e8
    ? { name: "memory", status: "warn", detail, remedy: "end other programs, or train smaller models" }
    : { name: "memory", status: "ok", detail };
}

function places(): DoctorCheck[] {
  return [
    place("runs go to", process.cwd(), "start rlv in another folder"),
    place("cache", cacheDir(), "set XDG_CACHE_HOME to another folder"),
  ];
}

function place(name: string, dir: string, remedy: string): DoctorCheck {
  let there = dir;
  while (!existsSync(there) && dirname(there) !== there) there = dirname(there);
  try {
    accessSync(there, constants.W_OK);
    const disk = statfsSync(there);
    const free = disk.bavail * disk.bsize;
    const detail = `${dir}, ${bytesText(free)} free`;
    return free < 1e9
      ? { name, status: "warn", detail, remedy: `little for models and checkpoints: ${remedy}` }
      : { name, status: "ok", detail };
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? String(error);
    return { name, status: "warn", detail: `${dir} cannot be written (${code})`, remedy };
  }
}

/** Milliseconds that the hub has for its answer: who waits longer downloads nothing. */
const HUB_PATIENCE = 3000;

async function hub(): Promise<DoctorCheck> {
  const name = "hub";
  let settings: HubSettings;
  try {
    settings = hubSettings();
  } catch (error) {
    return { name, status: "fail", detail: messageLine(error) };
  }
  const { endpoint, cache, offline, token } = settings;
  const files = place(name, cache, "set HF_HUB_CACHE to another folder");
  const kept = `files in ${files.detail}`;
  if (offline) return { ...files, detail: `not asked (HF_HUB_OFFLINE), ${kept}` };
  const context = { ...settings, patience: { ...PATIENCE, attempts: 1 }, progress: () => {} };
  const started = performance.now();
  try {
    const { status } = await ask(context, "/", {
      method: "HEAD",
      signal: AbortSignal.timeout(HUB_PATIENCE),
    });
    const refused = status === 401 || status === 403;
    const said = `${endpoint} answers in ${(performance.now() - started).toFixed(0)} ms`;
    if (refused && token !== null)
      return {
        name,
        status: "warn",
        detail: `${said} and refuses the token (${status})`,
        remedy: "get a new one, or unset HF_TOKEN",
      };
    if (status >= 400)
      return { name, status: "warn", detail: `${said} with status ${status}`, remedy: "check HF_ENDPOINT" };
    return { ...files, detail: `${said}, ${token === null ? "no token" : "with a token"}, ${kept}` };
  } catch (error) {
    return {
      name,
      status: "warn",
      detail: `${endpoint} does not answer (${(error as Error).message})`,
      remedy: "check the network, proxy and HF_ENDPOINT; models in folders and in the cache need no hub",
    };
  }
}

/** What doctor prints is pasted into bug reports. */
const SECRET: ReadonlySet<EnvironmentName> = new Set(["HF_TOKEN"]);

function settings(): DoctorCheck[] {
  return (
    (Object.keys(ENVIRONMENT) as EnvironmentName[])
      // PATH is set everywhere.
      .filter((name) => name !== "PATH" && environment(name) !== undefined)
      .map((name) => {
        const value = SECRET.has(name) ? "set" : environment(name);
        return { name, status: "ok" as const, detail: `${value} (${ENVIRONMENT[name]})` };
      })
  );
}

async function devices(): Promise<readonly DoctorCheck[]> {
  const { probe }: ProbeModule = await import("../run/probe.ts");
  return probe();
}
