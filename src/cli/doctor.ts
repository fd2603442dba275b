import { accessSync, constants, mkdirSync, statfsSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import type { DoctorCheck, ProbeModule } from "../config/contracts.ts";
import { cacheDir, ENVIRONMENT, type EnvironmentName, environment, threadCount } from "../core/env.ts";
import { messageLine } from "../core/errors.ts";
import { STANDALONE, VERSION } from "../core/version.ts";
import { bytesText } from "../run/reporter.ts";
import { type Command, JSON_FLAG, printJson } from "./command.ts";

export const command: Command = {
  name: "doctor",
  usage: "doctor",
  maxArgs: 0,
  summary: "check this machine and this installation",
  examples: () => ["rlv doctor", "rlv doctor --json"],
  flags: () => [JSON_FLAG],
  async run({ json }) {
    const checks = [...machine(), ...places(), ...settings(), ...(await devices())];
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
    attempt("threads", () => `${threadCount(null)} for the CPU device`),
    { name: "memory", status: "ok", detail: `${bytesText(totalmem())} in all` },
  ];
}

function attempt(name: string, detail: () => string): DoctorCheck {
  try {
    return { name, status: "ok", detail: detail() };
  } catch (error) {
    return { name, status: "fail", detail: messageLine(error) };
  }
}

function places(): DoctorCheck[] {
  return [place("runs go to", process.cwd()), place("cache", cacheDir(), true)];
}

function place(name: string, dir: string, make = false): DoctorCheck {
  try {
    if (make) mkdirSync(dir, { recursive: true });
    accessSync(dir, constants.W_OK);
    const disk = statfsSync(dir);
    const free = disk.bavail * disk.bsize;
    const detail = `${dir}, ${bytesText(free)} free`;
    return free < 1e9
      ? { name, status: "warn", detail, remedy: "checkpoints of larger models will not fit" }
      : { name, status: "ok", detail };
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? String(error);
    return {
      name,
      status: "warn",
      detail: `${dir} cannot be written (${code})`,
      remedy: "choose another folder",
    };
  }
}

/** What doctor prints is pasted into bug reports. */
const SECRET: ReadonlySet<EnvironmentName> = new Set(["HF_TOKEN"]);

function settings(): DoctorCheck[] {
  return (Object.keys(ENVIRONMENT) as EnvironmentName[])
    .filter((name) => environment(name) !== undefined)
    .map((name) => {
      const value = SECRET.has(name) ? "set" : environment(name);
      return { name, status: "ok" as const, detail: `${value} (${ENVIRONMENT[name]})` };
    });
}

async function devices(): Promise<readonly DoctorCheck[]> {
  const { probe }: ProbeModule = await import("../run/probe.ts");
  return probe();
}
