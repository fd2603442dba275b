import { join } from "node:path";
import { version } from "../../package.json";

/** The version of rlv, as package.json states it. */
export const VERSION: string = version;

/** True inside the single-file program that scripts/build makes. */
export const STANDALONE: boolean = Bun.isStandaloneExecutable;

/** The hidden command under which this program is started again as the engine process. */
export const ENGINE_COMMAND = "__engine";

/** Hidden commands of rewards: a program without rights, a module of the user's. */
export const CONFINE_COMMAND = "__confine";
export const MODULE_COMMAND = "__reward";
const ENTRIES = {
  [CONFINE_COMMAND]: "../reward/confine-main.ts",
  [MODULE_COMMAND]: "../reward/module-main.ts",
} as const;

/** argv of this very program as the child process of a reward: the standalone binary, or Bun with that one file. */
export function childArgv(command: keyof typeof ENTRIES): string[] {
  if (STANDALONE) return [process.execPath, command];
  return [process.execPath, join(import.meta.dir, ENTRIES[command])];
}
